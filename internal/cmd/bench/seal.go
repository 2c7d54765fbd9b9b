package main

import (
	"fmt"
	"strings"
)

// againstUnsealed compares an image with itself, sealed and not sealed: how long map
// takes, and how fast the device reads.
func (b *bed) againstUnsealed() {
	defer b.host(b.disks[0])()
	few, many := b.path("few.img"), b.path("many.img")
	must(b.program, "create", few, fmt.Sprint(imageSize))
	const n = 10_000
	fragmented(many, n)
	for _, image := range []struct{ name, path string }{{"256 MiB in few extents", few}, {"10,000 extents", many}} {
		b.mapSealed(image.name, image.path)
	}
	for _, j := range []job{
		{"random read, 4 KiB, depth 1", "randread", "4k", 1, "psync"},
		{"random read, 4 KiB, depth 32", "randread", "4k", 32, "libaio"},
		{"read, 1 MiB, depth 8", "read", "1m", 8, "libaio"},
	} {
		us, them := b.sealedAndNot(few, func() float64 {
			dev := strings.TrimSpace(must(b.program, "map", "--no-guard", few))
			defer must(b.program, "unmap", few)
			return j.fio(dev, 0, imageSize)
		})
		b.report(row{What: "sealed / unsealed map of the same image: " + j.name, Ours: us, Theirs: them, Unit: "kIOPS", Goal: 0.95})
	}
}

// mapSealed compares the times that map takes, which are short, and so noisy.
func (b *bed) mapSealed(name, path string) {
	rounds := b.rounds
	b.rounds = 3 * rounds
	defer func() { b.rounds = rounds }()
	us, them := b.sealedAndNot(path, func() float64 {
		_, ms := timed(b.program, "map", "--no-guard", path, "image")
		must(b.program, "unmap", "image")
		return ms
	})
	b.report(row{What: "map of a sealed image / of the same one unsealed, " + name, Ours: us, Theirs: them, Unit: "ms", AtMost: true, Goal: 1.05})
}

// sealedAndNot measures an image sealed and unsealed. It leaves it unsealed.
func (b *bed) sealedAndNot(path string, measure func() float64) (sealed, unsealed []float64) {
	defer must(b.program, "unseal", path)
	return b.sample(
		func() float64 { must(b.program, "seal", path); return measure() },
		func() float64 { must(b.program, "unseal", path); return measure() })
}
