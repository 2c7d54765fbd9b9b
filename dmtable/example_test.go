package dmtable_test

import (
	"fmt"

	"dmloop/dmtable"
)

// Two pieces of a disk become one device; the second piece later lies elsewhere.
func ExampleBuild() {
	disk := dmtable.Device{Major: 8, Minor: 1}
	table, err := dmtable.Build([]dmtable.Segment{
		{Device: disk, Start: 2048, Length: 8},
		{Device: disk, Start: 2056, Length: 8}, // the next sectors: one row
		{Device: disk, Start: 16, Length: 8},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := table.Validate(dmtable.Limits{Block: 8}); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Print(table)
	fmt.Println(table.Size(), "sectors")
	// Output:
	// 0 16 linear 8:1 2048
	// 16 8 linear 8:1 16
	// 24 sectors
}

func ExampleTable_Validate() {
	table, err := dmtable.ParseText("0 8 linear 8:1 2048\n16 8 linear 8:1 16\n")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(table.Validate(dmtable.Limits{}))
	// Output: table row 1 (from sector 16) leaves a gap: sector 8 is missing
}
