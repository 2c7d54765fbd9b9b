package main

import (
	"fmt"
	"os"
)

// scale measures a thousand mappings, and one of a million extents.
func (b *bed) scale() {
	b.thousand()
	b.million()
}

func (b *bed) thousand() {
	const n = 1000
	dev, remove := disk(512, nvme)
	defer remove()
	defer host("ext4", dev)()
	// Of the first tens and of the last.
	var first, last [2]float64
	for i := range n {
		name := fmt.Sprintf("s%d", i)
		must("dmloop", "create", path(name), "64K")
		_, _, took := execute("dmloop", "map", path(name), name)
		switch {
		case i >= 10 && i < 20:
			first[0] += took / 10
		case i >= 20 && i < 30:
			first[1] += took / 10
		case i >= n-20 && i < n-10:
			last[0] += took / 10
		case i >= n-10:
			last[1] += took / 10
		}
	}
	b.report(figure{b.group, "map, the 20th of 1,000 mappings", microseconds, first})
	b.report(figure{b.group, "map, the last of 1,000 mappings", microseconds, last})
	b.measure(running("dmloop", "list").named("list of 1,000"), running("dmloop", "verify", "s500").named("verify of one of 1,000"))
	b.idleShare("1,000 idle mappings of one extent")
	_, _, took := execute("dmloop", "unmap", "--all")
	b.report(figure{b.group, "unmap --all of 1,000", microseconds, [2]float64{took, took}})
	endGuard()
}

// million maps an image of a million extents, of 1 KiB each.
func (b *bed) million() {
	const n = 1_000_000
	dev, remove := disk(3000, nvme)
	defer remove()
	defer host("ext4", dev, "-b", "1024")()
	img := path("million.img")
	fragmented(img, n, 1024)
	var up, down, listed, memory, guards [2]float64
	for pass := range 2 {
		took, mib := silent("dmloop", "map", "--max-extents", fmt.Sprint(n+1000), img, "million")
		up[pass], memory[pass] = took, mib
		_, _, listed[pass] = execute("dmloop", "list")
		guards[pass] = resident(guardPID())
		_, _, down[pass] = execute("dmloop", "unmap", "million")
	}
	b.report(figure{b.group, "map, 1,000,000 extents", microseconds, up})
	b.report(figure{b.group, "map, 1,000,000 extents: memory", mebibytes, memory})
	b.report(figure{b.group, "list with it", microseconds, listed})
	b.report(figure{b.group, "unmap, 1,000,000 extents", microseconds, down})
	b.report(figure{b.group, "the guard's memory with it", mebibytes, guards})
	endGuard()
	check(os.Remove(img))
}
