package dmtable

import (
	"fmt"
	"strings"
)

// maxTargetName is the longest name of a target type (DM_MAX_TYPE_NAME is 16
// with the NUL).
const maxTargetName = 15

// Limits are what Validate holds a table against. The zero value is the
// kernel's own: 512-byte blocks and MaxRows rows.
type Limits struct {
	Block Sectors // logical block size in sectors, a power of two; 0 means 1
	Rows  int     // most rows allowed; 0 or more than MaxRows means MaxRows
}

// Validate returns a *RowError when the kernel would refuse the table, or would
// take something else for it than meant: rows that do not begin at sector 0,
// leave a gap, overlap, are empty or end beyond MaxSectors; a start or length on
// the mapped device, or a linear or striped row's place on its base device, that
// is not a multiple of limits.Block; more rows than limits.Rows; no row at all;
// arguments of linear and striped rows that are not understood; and names or
// arguments with characters that cannot stand in a table.
func (t Table) Validate(limits Limits) error {
	block := max(limits.Block, 1)
	if block&(block-1) != 0 {
		return fmt.Errorf("logical block size of %d sectors is not a power of two", block)
	}
	rows := MaxRows
	if limits.Rows > 0 && limits.Rows < MaxRows {
		rows = limits.Rows
	}
	if len(t) == 0 {
		return fmt.Errorf("table has no rows")
	}
	if len(t) > rows {
		return &RowError{Row: rows, Start: t[rows].Start, Reason: fmt.Sprintf("is one more than the %d rows allowed (there are %d)", rows, len(t))}
	}
	var next Sectors
	for i := range t {
		row := &t[i]
		reason := row.checkPlace(next)
		if reason == "" {
			reason = row.checkWords()
		}
		if reason == "" {
			reason = row.checkBlocks(block)
		}
		if reason != "" {
			return &RowError{Row: i, Start: row.Start, Reason: reason}
		}
		next = row.End()
	}
	return nil
}

// checkPlace says why the row cannot stand at sector next, or "".
func (r *Row) checkPlace(next Sectors) string {
	switch {
	case r.Start > next:
		return fmt.Sprintf("leaves a gap: sector %d is missing", next)
	case r.Start < next:
		return fmt.Sprintf("overlaps the row before it, which ends at sector %d", next)
	case r.Length == 0:
		return "has length 0"
	case r.Start > MaxSectors || r.Length > MaxSectors-r.Start:
		return "ends beyond the largest possible device"
	}
	return ""
}

// checkWords says why target and arguments cannot stand in a table, or "".
func (r *Row) checkWords() string {
	if r.Target != Linear && (r.Target == "" || len(r.Target) > maxTargetName || strings.ContainsFunc(r.Target, notGraphic)) {
		return fmt.Sprintf("has an impossible target name %q", r.Target)
	}
	if strings.IndexByte(r.Args, 0) >= 0 || strings.IndexByte(r.Args, '\n') >= 0 { // of 100,000 rows, quicker than ContainsAny
		return fmt.Sprintf("has impossible arguments %q", r.Args)
	}
	return ""
}

func notGraphic(r rune) bool { return r <= ' ' || r >= 0x7f }

// checkBlocks says where the row breaks the logical block size, or "".
func (r *Row) checkBlocks(block Sectors) string {
	if r.Start%block != 0 || r.Length%block != 0 {
		return fmt.Sprintf("has start %d and length %d, which are not multiples of the logical block size of %d sectors", r.Start, r.Length, block)
	}
	switch r.Target {
	case Linear:
		seg, err := r.Segment()
		if err != nil {
			return err.Error()
		}
		if seg.Start%block != 0 {
			return fmt.Sprintf("lies at sector %d of %s, which is not a multiple of the logical block size of %d sectors", seg.Start, seg.Device, block)
		}
	case Striped:
		stripes, err := r.Stripes()
		if err != nil {
			return err.Error()
		}
		for _, area := range stripes.Areas {
			if area.Start%block != 0 || stripes.Chunk%block != 0 {
				return fmt.Sprintf("has chunks of %d sectors from sector %d of %s, which are not multiples of the logical block size of %d sectors", stripes.Chunk, area.Start, area.Device, block)
			}
		}
	}
	return ""
}
