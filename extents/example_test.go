package extents_test

import (
	"fmt"

	"dmloop/extents"
)

// A file with a hole that shares its last block with another one cannot be mapped.
func ExampleLayout_Problems() {
	layout := extents.Layout{Size: 12288, Extents: []extents.Extent{
		{Logical: 0, Physical: 1 << 20, Length: 4096},
		{Logical: 8192, Physical: 2 << 20, Length: 4096, Flags: extents.FlagShared | extents.FlagLast},
	}}
	for _, p := range layout.Problems(4096, 0) {
		fmt.Printf("%s: bytes %d to %d\n", p.Rule, p.Offset, p.Offset+p.Length-1)
	}
	// Output:
	// hole: bytes 4096 to 8191
	// shared: bytes 8192 to 12287
}

func ExampleDiff() {
	before := extents.Layout{Size: 8192, Extents: []extents.Extent{{Physical: 1 << 20, Length: 8192}}}
	after := extents.Layout{Size: 8192, Extents: []extents.Extent{
		{Physical: 1 << 20, Length: 4096},
		{Logical: 4096, Physical: 2 << 20, Length: 4096},
	}}
	fmt.Println(extents.Diff(before, after))
	// Output: byte 4096 changed from address 1052672 to address 2097152
}
