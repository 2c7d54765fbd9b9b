package seal

import (
	"errors"
	"math/rand/v2"
	"testing"

	"dmloop/extents"
)

type bytesT = extents.Bytes

func rows(size bytesT, r ...[3]bytesT) extents.Layout {
	l := extents.Layout{Size: size}
	for _, x := range r {
		l.Extents = append(l.Extents, extents.Extent{Logical: x[0], Physical: x[1], Length: x[2]})
	}
	return l
}

func TestSlotRange(t *testing.T) {
	const k = 1024
	for _, c := range []struct {
		name       string
		l          extents.Layout
		slot       int
		file, phys bytesT
		have       int // of a *NoSlotError, when phys is 0
	}{
		{"aligned", rows(64*k, [3]bytesT{0, 1024 * k, 64 * k}), 1, 4 * k, 1028 * k, 0},
		{"aligned, slot 0", rows(64*k, [3]bytesT{0, 1024 * k, 64 * k}), 0, 0, 1024 * k, 0},
		// Seen on ext4 with 1 KiB blocks: first block at 10486784.
		{"1 KiB off the page", rows(4<<20, [3]bytesT{0, 10486784, 4 << 20}), 1, 7168, 10493952, 0},
		{"1 KiB off, slot 0", rows(4<<20, [3]bytesT{0, 10486784, 4 << 20}), 0, 3072, 10489856, 0},
		{"3 KiB off", rows(64*k, [3]bytesT{0, 1027 * k, 64 * k}), 1, 5 * k, 1032 * k, 0},
		{"two runs", rows(64*k, [3]bytesT{0, 1024 * k, 4 * k}, [3]bytesT{4 * k, 512 * k, 60 * k}), 1, 4 * k, 512 * k, 0},
		{"a run without a whole page counts nothing", rows(64*k, [3]bytesT{0, 1023 * k, 4 * k}, [3]bytesT{4 * k, 512 * k, 60 * k}), 1, 8 * k, 516 * k, 0},
		{"extents that adjoin are one run", rows(64*k, [3]bytesT{0, 1024 * k, 3 * k}, [3]bytesT{3 * k, 1027 * k, 61 * k}), 1, 4 * k, 1028 * k, 0},
		{"adjoining backwards is two", rows(16*k, [3]bytesT{0, 1028 * k, 4 * k}, [3]bytesT{4 * k, 1024 * k, 4 * k}, [3]bytesT{8 * k, 2048 * k, 8 * k}), 1, 4 * k, 1024 * k, 0},
		{"last bytes that are no page", rows(9*k, [3]bytesT{0, 1024 * k, 9 * k}), 2, 0, 0, 2},
		{"last page off the device's page", rows(8*k, [3]bytesT{0, 1025 * k, 8 * k}), 1, 0, 0, 1},
		{"preallocated beyond the end", rows(4*k, [3]bytesT{0, 1024 * k, 64 * k}), 1, 0, 0, 1},
		{"less than a page", rows(3*k, [3]bytesT{0, 1024 * k, 3 * k}), 0, 0, 0, 0},
	} {
		at, err := SlotRange(c.l, 4096, c.slot)
		var few *NoSlotError
		switch {
		case c.phys == 0:
			if !errors.As(err, &few) || few.Have != c.have || few.Slot != c.slot {
				t.Errorf("%s: %+v, %v, want %d slots", c.name, at, err, c.have)
			}
		case err != nil || at != (extents.Extent{Logical: c.file, Physical: c.phys, Length: 4096}):
			t.Errorf("%s: %+v, %v, want file %d device %d", c.name, at, err, c.file, c.phys)
		}
	}
	for name, l := range map[string]extents.Layout{
		"hole":     rows(64*k, [3]bytesT{0, 1024 * k, 2 * k}, [3]bytesT{4 * k, 2048 * k, 60 * k}),
		"overlap":  rows(64*k, [3]bytesT{0, 1024 * k, 2 * k}, [3]bytesT{1 * k, 2048 * k, 63 * k}),
		"cut":      rows(64*k, [3]bytesT{0, 1024 * k, 2 * k}),
		"no start": rows(64*k, [3]bytesT{4 * k, 1024 * k, 60 * k}),
	} {
		if at, err := SlotRange(l, 4096, 1); err == nil || errors.As(err, new(*NoSlotError)) {
			t.Errorf("%s: %+v, %v", name, at, err)
		}
	}
}

// numbered is a model of the kernel's loop that goes block by block: it collects
// the pages of each physical run in a list, as add_swap_extent does.
func numbered(l extents.Layout, block, page bytesT) []extents.Extent {
	var out []extents.Extent
	type place struct{ file, phys bytesT }
	var run []place
	flush := func() {
		for i := range run {
			whole := run[i].phys%page == 0 && i+int(page/block) <= len(run)
			if whole {
				out = append(out, extents.Extent{Logical: run[i].file, Physical: run[i].phys, Length: page})
			}
		}
		run = nil
	}
	for _, e := range l.Extents {
		for off := bytesT(0); off < e.Length && e.Logical+off < l.Size/page*page; off += block {
			p := place{e.Logical + off, e.Physical + off}
			if n := len(run); n > 0 && run[n-1].phys+block != p.phys {
				flush()
			}
			run = append(run, p)
		}
	}
	flush()
	return out
}

func TestSlotRangeAgainstModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 5000 {
		var l extents.Layout
		phys := bytesT(1+r.IntN(64)) * 1024
		for range 1 + r.IntN(8) {
			n := bytesT(1+r.IntN(16)) * 1024
			l.Extents = append(l.Extents, extents.Extent{Logical: l.Size, Physical: phys, Length: n})
			l.Size += n
			phys += n + bytesT(r.IntN(3))*1024
		}
		want := numbered(l, 1024, 4096)
		for slot := range len(want) + 1 {
			at, err := SlotRange(l, 4096, slot)
			var few *NoSlotError
			if slot == len(want) {
				if !errors.As(err, &few) || few.Have != len(want) {
					t.Fatalf("%+v: slot %d is %+v, %v, want none", l, slot, at, err)
				}
			} else if err != nil || at != want[slot] {
				t.Fatalf("%+v: slot %d is %+v, %v, want %+v", l, slot, at, err, want[slot])
			}
		}
	}
}
