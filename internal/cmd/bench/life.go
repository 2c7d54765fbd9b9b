package main

import (
	"fmt"
	"strings"
)

// againstLosetup compares making and removing a device of a one-extent image.
func (b *bed) againstLosetup() {
	defer b.host(b.disks[0])()
	file, other := b.path("image.img"), b.path("other.img")
	must(b.program, "create", file, "16M")
	must(b.program, "create", other, "16M")
	if table := must(b.program, "table", file); strings.Count(table, "\n") != 1 {
		check(fmt.Errorf("the image has more than one extent:\n%s", table))
	}
	loop := strings.TrimSpace(must("losetup", "-f"))
	both := func(options ...string) func() float64 {
		return func() float64 {
			_, up := timed(b.program, append([]string{"map", file}, options...)...)
			_, down := timed(b.program, "unmap", file)
			return up + down
		}
	}
	losetup := func() float64 {
		_, up := timed("losetup", "-f", other)
		_, down := timed("losetup", "-d", loop)
		return up + down
	}
	rounds := b.rounds
	b.rounds = 3 * rounds // short, and so noisy
	defer func() { b.rounds = rounds }()
	us, them := b.sample(both("--no-guard"), losetup)
	b.report(row{What: "map --no-guard + unmap / losetup -f + -d, one extent", Ours: us, Theirs: them, Unit: "ms", AtMost: true, Goal: 1.5})
	us, them = b.sample(func() float64 { _, ms := timed(b.program, "version"); return ms },
		func() float64 { _, ms := timed("losetup", "-f"); return ms })
	b.report(row{What: "for comparison: dmloop version / losetup -f", Ours: us, Theirs: them, Unit: "ms", AtMost: true})
}

const createSize = 512 << 20

// againstDD compares create with dd of zeros of the same size.
func (b *bed) againstDD() {
	b.createOn("disk", b.disks[0], 0.98)
}

// createOn compares on a disk all of whose blocks the guest's host has seen.
func (b *bed) createOn(name, dev string, goal float64) {
	must("dd", "if=/dev/zero", "of="+dev, "bs=4M", "oflag=direct", fmt.Sprintf("count=%d", 3*createSize>>22))
	defer b.host(dev)()
	file := b.path("image.img")
	rate := func(ms float64) float64 {
		must("rm", file)
		must("sync")
		return createSize / ms / 1000
	}
	us, them := b.sample(
		func() float64 {
			_, ms := timed(b.program, "create", file, fmt.Sprint(createSize))
			return rate(ms)
		},
		func() float64 {
			_, ms := timed("dd", "if=/dev/zero", "of="+file, "bs=4M", "oflag=direct", fmt.Sprintf("count=%d", createSize>>22))
			return rate(ms)
		})
	b.report(row{What: fmt.Sprintf("create / dd oflag=direct, %s", name), Ours: us, Theirs: them, Unit: "MB/s", Goal: goal})
}
