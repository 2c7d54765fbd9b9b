package guard_test

import (
	"fmt"

	"dmloop/extents"
	"dmloop/guard"
)

// What was recorded when a file was mapped is compared with what was read now.
func ExampleCheck() {
	file := guard.Identity{FileID: guard.FileID{Major: 253, Minor: 1, Inode: 12}, Size: 4096, Links: 1}
	want := guard.Expected{
		Name:     "image",
		Identity: file,
		Layout:   extents.Layout{Size: 4096, Extents: []extents.Extent{{Physical: 1 << 20, Length: 4096, Flags: extents.FlagLast}}},
	}
	moved := extents.Layout{Size: 4096, Extents: []extents.Extent{{Physical: 2 << 20, Length: 4096, Flags: extents.FlagLast}}}
	findings := guard.Check(want, guard.Observed{
		Identity: guard.Read(file, nil),
		Layout:   guard.Read(moved, nil),
	})
	for _, f := range findings {
		fmt.Println(f.Severity, f.Kind)
	}
	decision := guard.Decide(findings, guard.OnChangeError)
	fmt.Println(decision.State, decision.Act)
	// Output:
	// different moved
	// failed error
}
