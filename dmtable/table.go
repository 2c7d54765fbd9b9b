// Package dmtable holds device-mapper tables as plain values: built from
// segments, validated, printed, parsed and compared without a kernel.
package dmtable

// Row is one target of a table: Length sectors from Start on the mapped device
// are handled by Target with Args (what dmsetup prints after the target's name).
type Row struct {
	Start, Length Sectors
	Target        string // "linear", "striped", "error", ...
	Args          string // "98:0 4096" for linear
}

// Table is a whole device-mapper table, rows in order of Start.
type Table []Row
