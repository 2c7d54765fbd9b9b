package gate

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"

	"dmloop/dmtable"
	"dmloop/guard"
)

// UUID is the number in a mapping's uuid, by which the gate knows the mapping.
type UUID [16]byte

// ParseUUID reads the 32 hexadecimal digits of a mapping's uuid.
func ParseUUID(digits string) (id UUID, err error) {
	b, err := hex.DecodeString(digits)
	if err == nil && len(b) != len(id) {
		err = hex.ErrLength
	}
	copy(id[:], b)
	return id, err
}

// Entry is what the gate guards of one mapping.
type Entry struct {
	Mapping UUID
	Image   guard.FileID
	Devices []Device // none before the mapping's own device is made
	// Pinning says that the image's pins are being set or cleared, so that the file may have none
	// for a moment. Meanwhile every open on the machine is looked up.
	Pinning bool
}

// Kind says what a device is to a mapping.
type Kind uint32

// The kinds, as gate.c has them; a device can be several.
const (
	Own   Kind = 1 << iota // the mapping's own: no table, removal or renaming by others
	Below                  // its rows, or the host file system, stand on it
	Disk                   // has one of those as a partition
	Loop                   // a loop device
)

// Device is one that the gate guards.
type Device struct {
	Number dmtable.Device
	Kind   Kind
	Name   string // mangled, of a device-mapper device
	UUID   string
	Rows   dmtable.Table   // of the host device: rows that every new table must have
	End    dmtable.Sectors // of another one below: a new table must reach as far, and lead somewhere

	Partition uint32 // of a disk: the number of the one that has to stay
	Bytes     int64  // and how long it has to be
}

// Put makes the gate guard a mapping, from now on and as the entry says; what it guarded of it before
// and the entry does not name, it no longer guards.
func (g *Gate) Put(e Entry) error {
	return g.locked(func() error {
		return g.change(func(have pages) pages {
			have.drop(e.Mapping)
			maps.Copy(have, e.pages())
			return have
		})
	})
}

// Take makes the gate stop guarding these mappings. One that it does not guard is not an error.
func (g *Gate) Take(mappings ...UUID) error {
	return g.locked(func() error { return g.take(mappings) })
}

func (g *Gate) take(mappings []UUID) error {
	err := g.change(func(have pages) pages {
		for _, id := range mappings {
			have.drop(id)
		}
		return have
	})
	if err != nil {
		return err
	}
	return g.sweep()
}

// Settle makes the gate guard only mappings that are known, and tells it the names that the
// device-mapper devices have now, as names gives them: it forgets the earlier ones, and what it has
// learnt itself from renamings. It returns how many mappings it has released, and how many it guards.
func (g *Gate) Settle(known []UUID, names func() (map[dmtable.Device]string, error)) (gone, left int, err error) {
	err = g.locked(func() error {
		have, err := g.pages()
		if err != nil {
			return err
		}
		var strays []UUID
		guarded := have.mappings()
		for _, id := range guarded {
			if !slices.Contains(known, id) {
				strays = append(strays, id)
			}
		}
		gone, left = len(strays), len(guarded)-len(strays)
		cut, err := g.count(counterChanging)
		if err != nil {
			return err
		}
		if gone > 0 || cut != 0 {
			if err := g.take(strays); err != nil {
				return err
			}
		}
		if left == 0 {
			return nil
		}
		return g.learn(names)
	})
	return gone, left, err
}

// learn tells the gate the current names. One that it learns from a renaming meanwhile must not be
// forgotten: then it is told again.
func (g *Gate) learn(names func() (map[dmtable.Device]string, error)) error {
	for {
		learnt, err := g.count(counterLearnt)
		if err != nil {
			return err
		}
		now, err := names()
		if err != nil {
			return err
		}
		err = g.change(func(have pages) pages {
			have.rename(now)
			return have
		})
		if err != nil {
			return err
		}
		seen, err := g.count(counterSeen)
		if err != nil || seen == learnt {
			return err
		}
		if err := g.forget(now, learnt); err != nil {
			return err
		}
		if again, err := g.count(counterLearnt); err != nil || again == learnt {
			return err
		}
	}
}

// Guarded is one mapping as the gate knows it.
type Guarded struct {
	Mapping UUID
	Image   guard.FileID // without the time of birth
	Devices []Device     // numbers, kinds and names
}

// Mappings lists what the gate guards, in the order of their numbers.
func (g *Gate) Mappings() ([]Guarded, error) {
	have, err := g.pages()
	if err != nil {
		return nil, err
	}
	list := slices.Collect(maps.Values(have.guarded()))
	slices.SortFunc(list, func(a, b Guarded) int {
		return cmp.Or(cmp.Compare(binary.BigEndian.Uint64(a.Mapping[:8]), binary.BigEndian.Uint64(b.Mapping[:8])),
			cmp.Compare(binary.BigEndian.Uint64(a.Mapping[8:]), binary.BigEndian.Uint64(b.Mapping[8:])))
	})
	return list, nil
}
