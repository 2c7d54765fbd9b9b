// Package dmtable holds device-mapper tables as plain values: built from
// segments, validated, printed, parsed and compared without a kernel.
package dmtable

import (
	"fmt"
	"slices"
)

// MaxRows is the number of rows that the kernel accepts in one table
// (DM_MAX_TARGETS in drivers/md/dm-core.h).
const MaxRows = 1 << 20

// Target names that this package knows.
const (
	Linear  = "linear"  // one stretch of one device
	Striped = "striped" // chunks spread over several devices in turn
	Error   = "error"   // every I/O fails
)

// Row is one target of a table: Length sectors from Start on the mapped device
// are handled by Target with Args (what dmsetup prints after the target's name).
type Row struct {
	Start, Length Sectors
	Target        string // "linear", "striped", "error", ...
	Args          string // "98:0 4096" for linear
}

// End returns the first sector after the row on the mapped device.
func (r Row) End() Sectors { return r.Start + r.Length }

// Table is a whole device-mapper table, rows in order of Start.
type Table []Row

// Size returns the length of the mapped device in sectors: the end of the last
// row, or 0 for an empty table. It is only meaningful for a valid table.
func (t Table) Size() Sectors {
	if len(t) == 0 {
		return 0
	}
	return t[len(t)-1].End()
}

// Equal reports whether both tables have the same rows, byte for byte.
func (t Table) Equal(other Table) bool { return slices.Equal(t, other) }

// ErrorTable returns a table of one error row: every I/O to the size sectors of
// the mapped device fails. It names no device, so it holds none open.
func ErrorTable(size Sectors) Table {
	return Table{{Start: 0, Length: size, Target: Error}}
}

// RowError says which row of a table, or which segment given to Build, is
// wrong and why. Match it with errors.As.
type RowError struct {
	Row    int     // index of the row or segment, from 0
	Start  Sectors // its first sector on the mapped device
	Reason string  // what is wrong with it, as the end of a sentence
}

func (e *RowError) Error() string {
	return fmt.Sprintf("table row %d (from sector %d) %s", e.Row, e.Start, e.Reason)
}
