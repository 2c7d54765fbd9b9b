package gate

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"

	"dmloop/dmtable"
	"dmloop/guard"
)

// The kinds of facts: for ever, since another version of dmloop may read them.
const (
	factInode  uint32 = iota + 1 // A: number, B: generation, C: 1 while its pins change
	factDevice                   // A: kinds, B: end
	factRow                      // A: first sector, B: digest, C: end
	factPart                     // A: number of the partition, B: bytes
	factName                     // Name
)

// facts are what an entry is written down as.
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
			facts = append(facts, gateFact{Kind: factRow, Device: number, A: uint64(row.Start), B: digest(row), C: uint64(row.End())})
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

func cString(b []byte) string {
	if i := slices.Index(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// digest is gate.c's, of what a row leads to.
func digest(row dmtable.Row) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s\x00", row.Target, row.Args)
	return h.Sum64()
}

// pages are the facts of all mappings, some to a page.
type pages map[gatePageKey]gatePage

// pages are what the entry's facts fill.
func (e *Entry) pages() pages {
	filled := pages{}
	for part := range slices.Chunk(e.facts(), len(gatePage{}.Facts)) {
		var p gatePage
		copy(p.Facts[:], part)
		filled[gatePageKey{Uuid: e.Mapping, Number: uint32(len(filled))}] = p
	}
	return filled
}

// drop takes a mapping's facts out.
func (p pages) drop(mapping UUID) {
	maps.DeleteFunc(p, func(key gatePageKey, _ gatePage) bool { return key.Uuid == mapping })
}

// mappings lists the mappings that there are facts of.
func (p pages) mappings() (list []UUID) {
	for key := range p {
		if key.Number == 0 {
			list = append(list, key.Uuid)
		}
	}
	return list
}

// each calls back for each fact, with the mapping that it is of, in no order.
func (p pages) each(do func(UUID, gateFact)) {
	for key, page := range p {
		for _, f := range page.Facts {
			if f.Kind != 0 {
				do(key.Uuid, f)
			}
		}
	}
}

// rename replaces the noted names of devices that exist by their current ones.
func (p pages) rename(now map[dmtable.Device]string) {
	for key, page := range p {
		for i, f := range page.Facts {
			name, there := now[userDevice(f.Device)]
			if f.Kind == factName && f.Name.Kind == 'n' && there {
				page.Facts[i].Name = nameKey('n', name)
			}
		}
		p[key] = page
	}
}

// guarded puts the facts of each mapping together again.
func (p pages) guarded() map[UUID]Guarded {
	all := map[UUID]Guarded{}
	names := map[dmtable.Device]string{}
	p.each(func(mapping UUID, f gateFact) {
		m := all[mapping]
		m.Mapping = mapping
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
		all[mapping] = m
	})
	for _, m := range all {
		for i := range m.Devices {
			m.Devices[i].Name = names[m.Devices[i].Number]
		}
		slices.SortFunc(m.Devices, func(a, b Device) int {
			return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(kernelNumber(a.Number), kernelNumber(b.Number)))
		})
	}
	return all
}
