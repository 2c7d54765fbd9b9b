package gate

import (
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"dmloop/dmtable"
)

// The counters of gate.c.
const (
	counterRefused uint32 = iota
	counterPinning
	counterDevices
	counterLearnt
	counterSeen
	counterChanging
)

func (g *Gate) count(which uint32) (n uint64, err error) {
	m, err := g.open(gateMapCounters)
	if err != nil {
		return 0, err
	}
	if err := m.Lookup(which, &n); err != nil {
		return 0, fmt.Errorf("reading the gate's counters: %w", err)
	}
	return n, nil
}

func (g *Gate) setCount(which uint32, n uint64) error {
	return write(g, gateMapCounters, which, n)
}

// pages are the facts that the gate has.
func (g *Gate) pages() (pages, error) { return all[gatePageKey, gatePage](g, gateMapPages) }

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
func indexOf(p pages) (index, error) {
	x := index{inodes: map[gateInodeKey]uint32{}, devices: map[uint32]gateDevice{}, rows: map[gateRowKey]gateRow{},
		parts: map[gatePartKey]uint64{}, names: map[gateNameKey]uint32{}}
	var err error
	p.each(func(_ UUID, f gateFact) {
		switch f.Kind {
		case factInode:
			x.inodes[gateInodeKey{Number: f.A, Device: f.Device, Generation: uint32(f.B)}] = 1
			x.pinning += f.C
		case factDevice:
			d := x.devices[f.Device]
			d.Kinds |= uint32(f.A)
			d.End = max(d.End, f.B)
			x.devices[f.Device] = d
		case factRow:
			key := gateRowKey{Start: f.A, Device: f.Device}
			row, known := x.rows[key]
			if known && row.Digest != f.B {
				err = fmt.Errorf("%s: two mappings stand on different tables of it", userDevice(f.Device))
			}
			x.rows[key] = gateRow{Digest: f.B, End: max(row.End, f.C)}
		case factPart:
			key := gatePartKey{Disk: f.Device, Number: uint32(f.A)}
			x.parts[key] = max(x.parts[key], f.B)
		case factName:
			x.names[f.Name] = f.Device
		}
	})
	for key := range x.rows {
		d := x.devices[key.Device]
		d.Rows++
		x.devices[key.Device] = d
	}
	return x, err
}

// indexNow reads the index that the programs look at.
func (g *Gate) indexNow() (x index, err error) {
	if x.inodes, err = all[gateInodeKey, uint32](g, gateMapInodes); err != nil {
		return x, err
	}
	if x.devices, err = all[uint32, gateDevice](g, gateMapDevices); err != nil {
		return x, err
	}
	if x.rows, err = all[gateRowKey, gateRow](g, gateMapRows); err != nil {
		return x, err
	}
	if x.parts, err = all[gatePartKey, uint64](g, gateMapParts); err != nil {
		return x, err
	}
	if x.names, err = all[gateNameKey, uint32](g, gateMapNames); err != nil {
		return x, err
	}
	x.pinning, err = g.count(counterPinning)
	return x, err
}

// change exchanges the facts, and has the programs look at what they say then. A process that is
// killed in the middle leaves a mark, by which the next change reads what the programs look at instead
// of making it of the facts.
func (g *Gate) change(facts func(pages) pages) error {
	before, err := g.pages()
	if err != nil {
		return err
	}
	after := facts(maps.Clone(before))
	cut, err := g.count(counterChanging)
	if err != nil || cut == 0 && maps.Equal(before, after) {
		return err
	}
	want, err := indexOf(after)
	if err != nil {
		return err
	}
	have, err := indexOf(before)
	if cut != 0 || err != nil {
		have, err = g.indexNow()
	}
	if err != nil {
		return err
	}
	if err := g.setCount(counterChanging, 1); err != nil {
		return err
	}
	if err := equalize(g, gateMapPages, before, after); err != nil {
		return err
	}
	if err := g.apply(have, want); err != nil {
		return err
	}
	return g.setCount(counterChanging, 0)
}

// apply makes one index of another. In between a table may be refused that would be let
// through, and none the other way round: a device is known before the rest of it goes, and
// all of its rows before it counts them.
func (g *Gate) apply(have, want index) error {
	if err := add(g, gateMapInodes, have.inodes, want.inodes); err != nil {
		return err
	}
	if err := g.setCount(counterPinning, want.pinning); err != nil {
		return err
	}
	if err := add(g, gateMapRows, have.rows, want.rows); err != nil {
		return err
	}
	if err := add(g, gateMapParts, have.parts, want.parts); err != nil {
		return err
	}
	if err := add(g, gateMapNames, have.names, want.names); err != nil {
		return err
	}
	if err := g.setCount(counterDevices, uint64(len(want.devices))); err != nil {
		return err
	}
	if err := add(g, gateMapDevices, have.devices, want.devices); err != nil {
		return err
	}
	return errors.Join(g.dropNames(have, want), remove(g, gateMapDevices, have.devices, want.devices), remove(g, gateMapParts, have.parts, want.parts),
		remove(g, gateMapRows, have.rows, want.rows), remove(g, gateMapInodes, have.inodes, want.inodes))
}

// dropNames drops names that are no longer wanted, and, of devices that are no longer guarded, also those
// that the gate has learnt itself. Of others these stay until learn looks at them.
func (g *Gate) dropNames(have, want index) error {
	learnt, err := g.count(counterLearnt)
	if err != nil {
		return err
	}
	names := have.names
	if learnt > 0 {
		if names, err = all[gateNameKey, uint32](g, gateMapNames); err != nil {
			return err
		}
	}
	stay := maps.Clone(want.names)
	for key, device := range names {
		_, of := have.names[key]
		if _, guarded := want.devices[device]; guarded && !of {
			stay[key] = device
		}
	}
	return remove(g, gateMapNames, names, stay)
}

// forget drops the names that devices no longer have, and notes that what was learnt has been
// looked at.
func (g *Gate) forget(now map[dmtable.Device]string, learnt uint64) error {
	known, err := all[gateNameKey, uint32](g, gateMapNames)
	if err != nil {
		return err
	}
	stay := maps.Clone(known)
	maps.DeleteFunc(stay, func(key gateNameKey, device uint32) bool {
		name, there := now[userDevice(device)]
		return key.Kind == 'n' && there && key != nameKey('n', name)
	})
	// What was learnt since then may be the current name.
	if again, err := g.count(counterLearnt); err != nil || again != learnt {
		return err
	}
	if err := remove(g, gateMapNames, known, stay); err != nil {
		return err
	}
	return g.setCount(counterSeen, learnt)
}

// all reads a whole map.
func all[K comparable, V any](g *Gate, name string) (map[K]V, error) {
	m, err := g.open(name)
	if err != nil {
		return nil, err
	}
	found := map[K]V{}
	keys, values := make([]K, 16), make([]V, 16)
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
			return nil, fmt.Errorf("reading the gate's %s: %w", name, err)
		}
	}
}

func write[K, V any](g *Gate, name string, key K, value V) error {
	m, err := g.open(name)
	if err == nil {
		err = m.Put(key, value)
	}
	if err != nil {
		return fmt.Errorf("writing the gate's %s: %w", name, err)
	}
	return nil
}

// add writes what a map does not have, or has with another value.
func add[K, V comparable](g *Gate, name string, have, want map[K]V) error {
	for key, value := range want {
		if now, there := have[key]; there && now == value {
			continue
		}
		if err := write(g, name, key, value); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes what is no longer wanted.
func remove[K comparable, V, W any](g *Gate, name string, have map[K]V, want map[K]W) error {
	for key := range have {
		if _, wanted := want[key]; wanted {
			continue
		}
		m, err := g.open(name)
		if err == nil {
			err = m.Delete(key)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("writing the gate's %s: %w", name, err)
		}
	}
	return nil
}

// equalize makes a map of another.
func equalize[K, V comparable](g *Gate, name string, have, want map[K]V) error {
	if err := add(g, name, have, want); err != nil {
		return err
	}
	return remove(g, name, have, want)
}
