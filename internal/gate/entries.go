package gate

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

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

// The kinds of facts: for ever, since another version of dmloop may read them.
const (
	factInode uint32 = iota + 1
	factDevice
	factRow
	factPart
	factName
)

// The counters of gate.c.
const (
	counterRefused uint32 = iota
	counterPinning
	counterDevices
)

// facts are what an entry is written down as, the device itself after what belongs to it.
func (e *Entry) facts() []gateFact {
	image := gateFact{Kind: factInode, Device: kernelNumber(e.Image.Device()), A: e.Image.Inode, B: uint64(e.Image.Generation)}
	if e.Pinning {
		image.C = 1
	}
	facts := []gateFact{image}
	for i := range e.Devices {
		d := &e.Devices[i]
		number := kernelNumber(d.Number)
		for _, row := range d.Rows {
			facts = append(facts, gateFact{Kind: factRow, Device: number, A: uint64(row.Start), B: digest(row)},
				gateFact{Kind: factRow, Device: number, A: uint64(row.Start), B: uint64(row.End()), C: 1})
		}
		if d.Kind&Disk != 0 {
			facts = append(facts, gateFact{Kind: factPart, Device: number, A: uint64(d.Partition), B: uint64(d.Bytes)})
		}
		if d.Name != "" {
			facts = append(facts, gateFact{Kind: factName, Device: number, Name: nameKey('n', d.Name)})
		}
		if d.UUID != "" {
			facts = append(facts, gateFact{Kind: factName, Device: number, Name: nameKey('u', d.UUID)})
		}
		facts = append(facts, gateFact{Kind: factDevice, Device: number, A: uint64(d.Kind), B: uint64(d.End)})
	}
	return facts
}

// kernelNumber is a device's number as the kernel has it (MKDEV in include/linux/kdev_t.h).
func kernelNumber(d dmtable.Device) uint32 { return d.Major<<20 | d.Minor }

func inodeKey(f guard.FileID) gateInodeKey {
	return gateInodeKey{Number: f.Inode, Device: kernelNumber(f.Device()), Generation: f.Generation}
}

func userDevice(number uint32) dmtable.Device {
	return dmtable.Device{Major: number >> 20, Minor: number & (1<<20 - 1)}
}

func nameKey(kind byte, text string) gateNameKey {
	key := gateNameKey{Kind: kind}
	copy(key.Text[:], text)
	return key
}

// digest is gate.c's, of what a row leads to.
func digest(row dmtable.Row) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s\x00", row.Target, row.Args)
	return h.Sum64()
}

// index is what the programs look at, made of all facts.
type index struct {
	pinning uint64 // images
	inodes  map[gateInodeKey]uint32
	devices map[uint32]gateDevice
	rows    map[gateRowKey]gateRow
	parts   map[gatePartKey]uint64
	names   map[gateNameKey]uint32
}

// indexOf makes the index. Two mappings that want a row to lead to different places cannot both be
// right: that is an error.
func indexOf(facts map[gateFactKey]gateFact) (index, error) {
	x := index{inodes: map[gateInodeKey]uint32{}, devices: map[uint32]gateDevice{}, rows: map[gateRowKey]gateRow{},
		parts: map[gatePartKey]uint64{}, names: map[gateNameKey]uint32{}}
	for _, f := range facts {
		switch f.Kind {
		case factInode:
			x.inodes[gateInodeKey{Number: f.A, Device: f.Device, Generation: uint32(f.B)}] = 1
			x.pinning += uint64(f.C)
		case factDevice:
			d := x.devices[f.Device]
			d.Kinds |= uint32(f.A)
			d.End = max(d.End, f.B)
			x.devices[f.Device] = d
		case factRow:
			key := gateRowKey{Start: f.A, Device: f.Device}
			row := x.rows[key]
			if f.C == 1 {
				row.End = max(row.End, f.B)
			} else {
				if row.Digest != 0 && row.Digest != f.B {
					return x, fmt.Errorf("%s: two mappings stand on different tables of it", userDevice(f.Device))
				}
				row.Digest = f.B
			}
			x.rows[key] = row
		case factPart:
			key := gatePartKey{Disk: f.Device, Number: uint32(f.A)}
			x.parts[key] = max(x.parts[key], f.B)
		case factName:
			x.names[f.Name] = f.Device
		}
	}
	for key := range x.rows {
		d := x.devices[key.Device]
		d.Rows++
		x.devices[key.Device] = d
	}
	return x, nil
}

// all reads a whole map.
func all[K comparable, V any](m *ebpf.Map) (map[K]V, error) {
	found := map[K]V{}
	keys, values := make([]K, 256), make([]V, 256)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			found[keys[i]] = values[i]
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return found, nil
		case errors.Is(err, unix.ENOSPC): // a bucket did not fit
			keys, values = make([]K, 4*len(keys)), make([]V, 4*len(values))
		case err != nil:
			return nil, fmt.Errorf("reading the gate's %s: %w", m, err)
		}
	}
}

// makeEqual makes a map hold what it should: what is missing first, and then without the rest.
func makeEqual[K comparable, V comparable](m *ebpf.Map, want map[K]V, keep func(K, V) bool) (drop []K, err error) {
	have, err := all[K, V](m)
	if err != nil {
		return nil, err
	}
	for key, value := range want {
		if now, there := have[key]; there && now == value {
			continue
		}
		if err := m.Put(key, value); err != nil {
			return nil, fmt.Errorf("writing the gate's map: %w", err)
		}
	}
	for key, value := range have {
		if _, wanted := want[key]; !wanted && !keep(key, value) {
			drop = append(drop, key)
		}
	}
	return drop, nil
}

func remove[K comparable](m *ebpf.Map, keys []K) error {
	for _, key := range keys {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("writing the gate's map: %w", err)
		}
	}
	return nil
}

func never[K, V any](K, V) bool { return false }

// apply makes the maps that the programs look at say what the facts say. In between a
// table may be refused that would be let through, and none the other way round: a device
// is known before the rest of it goes, and all of its rows before it counts them.
func (g *Gate) apply() error {
	facts, err := all[gateFactKey, gateFact](g.maps.Facts)
	if err != nil {
		return err
	}
	want, err := indexOf(facts)
	if err != nil {
		return err
	}
	inodes, err := makeEqual(g.maps.Inodes, want.inodes, never)
	if err != nil {
		return err
	}
	if err := g.maps.Counters.Put(counterPinning, want.pinning); err != nil {
		return fmt.Errorf("writing the gate's map: %w", err)
	}
	rows, err := makeEqual(g.maps.Rows, want.rows, never)
	if err != nil {
		return err
	}
	parts, err := makeEqual(g.maps.Parts, want.parts, never)
	if err != nil {
		return err
	}
	// A name that the gate itself learnt stays as long as its device.
	names, err := makeEqual(g.maps.Names, want.names, func(_ gateNameKey, device uint32) bool {
		_, stays := want.devices[device]
		return stays
	})
	if err != nil {
		return err
	}
	if err := g.maps.Counters.Put(counterDevices, uint64(len(want.devices))); err != nil {
		return fmt.Errorf("writing the gate's map: %w", err)
	}
	devices, err := makeEqual(g.maps.Devices, want.devices, never)
	if err != nil {
		return err
	}
	return errors.Join(remove(g.maps.Names, names), remove(g.maps.Devices, devices), remove(g.maps.Parts, parts),
		remove(g.maps.Rows, rows), remove(g.maps.Inodes, inodes))
}

// Put has the gate guard a mapping, from now on and as the entry says; what it guarded of it before
// and the entry does not name, it guards no more.
func (g *Gate) Put(e Entry) error {
	return g.locked(func() error {
		have, err := all[gateFactKey, gateFact](g.maps.Facts)
		if err != nil {
			return err
		}
		facts := e.facts()
		for i, fact := range facts {
			key := gateFactKey{Uuid: e.Mapping, Number: uint32(i)}
			if now, there := have[key]; there && now == fact {
				continue
			}
			if err := g.maps.Facts.Put(key, fact); err != nil {
				return fmt.Errorf("writing the gate's map: %w", err)
			}
		}
		var surplus []gateFactKey
		for key := range have {
			if key.Uuid == e.Mapping && int(key.Number) >= len(facts) {
				surplus = append(surplus, key)
			}
		}
		if err := remove(g.maps.Facts, surplus); err != nil {
			return err
		}
		return g.apply()
	})
}

// Take has the gate guard these mappings no more. One that it does not guard is no error.
func (g *Gate) Take(mappings ...UUID) error {
	return g.locked(func() error {
		have, err := all[gateFactKey, gateFact](g.maps.Facts)
		if err != nil {
			return err
		}
		var gone []gateFactKey
		for key := range have {
			if slices.Contains(mappings, UUID(key.Uuid)) {
				gone = append(gone, key)
			}
		}
		if err := remove(g.maps.Facts, gone); err != nil {
			return err
		}
		return errors.Join(g.apply(), g.sweep())
	})
}

// Guarded is one mapping as the gate knows it.
type Guarded struct {
	Mapping UUID
	Image   guard.FileID // without the time of birth
	Devices []Device     // numbers, kinds and names
}

// Has reports whether the gate guards this inode for this mapping, and the mapping's own device.
func (g Guarded) Has(image guard.FileID, own dmtable.Device) bool {
	return g.Image.SameFile(image) && slices.ContainsFunc(g.Devices, func(d Device) bool {
		return d.Number == own && d.Kind&Own != 0
	})
}

// Mappings lists what the gate guards, in the order of their numbers.
func (g *Gate) Mappings() ([]Guarded, error) {
	facts, err := all[gateFactKey, gateFact](g.maps.Facts)
	if err != nil {
		return nil, err
	}
	byMapping := map[UUID]*Guarded{}
	names := map[dmtable.Device]string{}
	for key, f := range facts {
		m := byMapping[key.Uuid]
		if m == nil {
			m = &Guarded{Mapping: key.Uuid}
			byMapping[key.Uuid] = m
		}
		number := userDevice(f.Device)
		switch f.Kind {
		case factInode:
			m.Image = guard.FileID{Major: number.Major, Minor: number.Minor, Inode: f.A, Generation: uint32(f.B)}
		case factDevice:
			m.Devices = append(m.Devices, Device{Number: number, Kind: Kind(f.A)})
		case factName:
			if f.Name.Kind == 'n' {
				names[number] = cString(f.Name.Text[:])
			}
		}
	}
	list := make([]Guarded, 0, len(byMapping))
	for _, m := range byMapping {
		for i := range m.Devices {
			m.Devices[i].Name = names[m.Devices[i].Number]
		}
		slices.SortFunc(m.Devices, func(a, b Device) int {
			return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(kernelNumber(a.Number), kernelNumber(b.Number)))
		})
		list = append(list, *m)
	}
	slices.SortFunc(list, func(a, b Guarded) int {
		return cmp.Or(cmp.Compare(binary.BigEndian.Uint64(a.Mapping[:8]), binary.BigEndian.Uint64(b.Mapping[:8])),
			cmp.Compare(binary.BigEndian.Uint64(a.Mapping[8:]), binary.BigEndian.Uint64(b.Mapping[8:])))
	})
	return list, nil
}

func cString(b []byte) string {
	if i := slices.Index(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// Renamed tells the gate the names that the device-mapper devices have now, as List gives them:
// names of before, and those that it learnt from renamings, are forgotten.
func (g *Gate) Renamed(now map[dmtable.Device]string) error {
	return g.locked(func() error {
		facts, err := all[gateFactKey, gateFact](g.maps.Facts)
		if err != nil {
			return err
		}
		for key, f := range facts {
			name, there := now[userDevice(f.Device)]
			if f.Kind != factName || f.Name.Kind != 'n' || !there || f.Name == nameKey('n', name) {
				continue
			}
			f.Name = nameKey('n', name)
			if err := g.maps.Facts.Put(key, f); err != nil {
				return fmt.Errorf("writing the gate's map: %w", err)
			}
		}
		if err := g.apply(); err != nil {
			return err
		}
		known, err := all[gateNameKey, uint32](g.maps.Names)
		if err != nil {
			return err
		}
		var gone []gateNameKey
		for key, device := range known {
			if name, there := now[userDevice(device)]; key.Kind == 'n' && there && key != nameKey('n', name) {
				gone = append(gone, key)
			}
		}
		return remove(g.maps.Names, gone)
	})
}
