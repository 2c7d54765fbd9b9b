package record

import (
	"testing"

	"dmloop/dmtable"
	"dmloop/extents"
)

// BenchmarkEncode has the 100,000 extents of the speed goals.
func BenchmarkEncode(b *testing.B) {
	m := Record{Name: "bench", UUID: "DMLOOP-0-bench"}
	var segs []dmtable.Segment
	for i := range 100_000 {
		at := extents.Bytes(i) * 8192
		m.Layout.Extents = append(m.Layout.Extents, extents.Extent{Logical: at / 2, Physical: 1<<30 + at, Length: 4096})
		segs = append(segs, dmtable.Segment{Device: dmtable.Device{Major: 254, Minor: 3}, Start: dmtable.Sectors(1<<21 + i*16), Length: 8})
	}
	m.Table, _ = dmtable.Build(segs)
	for b.Loop() {
		if _, err := Encode(m); err != nil {
			b.Fatal(err)
		}
	}
}
