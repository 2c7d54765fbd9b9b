package main

import "fmt"

// A goal is about one figure, or about how many times it is another one.
type goal struct {
	what         string
	ours, theirs string // names of figures; without theirs the goal is about the figure itself
	above        string // a figure that is taken off both sides first
	most         float64
}

const (
	manyReads = "random read, 4 KiB, 32 at a time: "
	oneByOne  = "random read, 4 KiB, one by one: "
)

// goals are those of the project, in the order of the table.
var goals = []goal{
	{"instructions of a request above the disk's: mapped / loop with direct I/O", manyReads + onMapped, manyReads + onLoop, manyReads + onDisk, 0.3},
	{"the same: mapped / file with O_DIRECT", manyReads + onMapped, manyReads + onFile, manyReads + onDisk, 0.65},
	{"random request, an image of 1,000 extents / of one", "random read, 4 KiB, of 1000 extents: mapped", "random read, 4 KiB, of 1 extents: mapped", "", 1.05},
	{"random request, an image of 100,000 extents / of one", "random read, 4 KiB, of 100000 extents: mapped", "random read, 4 KiB, of 1 extents: mapped", "", 1.15},
	{"start: dmloop version / a program in Go that prints one line", "dmloop version", "hello", "", 1.25},
	{"map + unmap, one extent, no guard / losetup + losetup -d", "map + unmap, no guard, --gate=none", "losetup -f, losetup -d", "", 1.2},
	{"map + unmap under a guard / without one", "map + unmap, under a guard, --gate=none", "map + unmap, no guard, --gate=none", "", 1.3},
	{"map + unmap with the gate in force / without, no guard", "map + unmap, no guard, --gate=bpf", "map + unmap, no guard, --gate=none", "", 1.05},
	{"map + unmap with the gate in force / without, under a guard", "map + unmap, under a guard, --gate=bpf", "map + unmap, under a guard, --gate=none", "", 1.05},
	{"map of 100,000 extents / its own ioctls", "map, 100000 extents", "map, 100000 extents: its ioctls", "", 1.25},
	{"map of 100,000 extents / filefrag, awk and dmsetup", "map, 100000 extents", "filefrag, awk, dmsetup create, 100,000 extents", "", 0.35},
	{"extents of 500,000 / filefrag -v", "extents of 500,000", "filefrag -v of 500,000", "", 0.2},
	{"extents of 500,000: memory, MiB", "extents of 500,000: memory", "", "", 100},
	{"map of a sealed image / of the same unsealed, few extents", "map, sealed, few extents", "map, unsealed, few extents", "", 1.1},
	{"map of a sealed image / of the same unsealed, 10,000 extents", "map, sealed, 10,000 extents", "map, unsealed, 10,000 extents", "", 1.1},
	{"host device reloaded, until the first I/O error: p50, µs", "host device reloaded: p50", "", "", 3000},
	{"the same: p99, µs", "host device reloaded: p99", "", "", 8000},
	{"image made longer, until the first I/O error: p50, µs", "image made longer: p50", "", "", 3000},
	{"the same: p99, µs", "image made longer: p99", "", "", 8000},
	{"guard with 100 idle mappings of 1,000 extents: share of the processor, %", "100 idle mappings of 1,000 extents", "", "", 0.3},
}

// cell is what the table says of the goal on one kernel.
func (g goal) cell(r result) string {
	ours, ok := r.find(g.ours)
	if !ok {
		return "-"
	}
	if g.theirs == "" {
		return verdict(ours.value(), g.most, fmt.Sprintf("%.3g", ours.value()), ours.unsteady())
	}
	theirs, ok := r.find(g.theirs)
	if !ok {
		return "-"
	}
	base, unsteady := 0.0, ours.unsteady() || theirs.unsteady()
	if g.above != "" {
		below, ok := r.find(g.above)
		if !ok {
			return "-"
		}
		base, unsteady = below.value(), unsteady || below.unsteady()
	}
	a, b := ours.value()-base, theirs.value()-base
	return verdict(a/b, g.most, fmt.Sprintf("%.3gx (%.0f / %.0f %s)", a/b, a, b, ours.Unit), unsteady)
}

// verdict marks what was missed, and what no second measurement in the same run has shown again.
func verdict(value, most float64, text string, unsteady bool) string {
	if value > most {
		text += " **missed**"
	}
	if unsteady {
		text += " ~"
	}
	return text
}

func (g goal) limit() string {
	if g.theirs == "" {
		return fmt.Sprintf("≤ %g", g.most)
	}
	return fmt.Sprintf("≤ %gx", g.most)
}
