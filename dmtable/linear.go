package dmtable

import (
	"fmt"
	"strconv"
	"strings"
)

// Build returns the table that shows the segments one after the other: linear
// rows from sector 0, adjacent segments (same device, next sector) merged into
// one row. It returns a *RowError for a segment of length 0, one that ends
// beyond MaxSectors or names an impossible device, and when the sum of the
// lengths exceeds MaxSectors. No segments make an empty table, which Validate
// refuses. All arguments share one string, so a million segments cost few
// allocations.
func Build(segs []Segment) (Table, error) {
	rows, argBytes, err := measure(segs)
	if err != nil {
		return nil, err
	}
	table := make(Table, 0, rows)
	var args strings.Builder
	args.Grow(argBytes)
	var scratch [64]byte
	var start Sectors
	for i := 0; i < len(segs); {
		seg, n := mergeFrom(segs[i:])
		i += n
		from := args.Len()
		args.Write(appendLinear(scratch[:0], seg))
		table = append(table, Row{Start: start, Length: seg.Length, Target: Linear, Args: args.String()[from:]})
		start += seg.Length
	}
	return table, nil
}

// measure checks the segments and returns how many rows and how many bytes of
// arguments they make.
func measure(segs []Segment) (rows, argBytes int, err error) {
	var start Sectors
	for i, seg := range segs {
		reason := seg.check()
		if reason == "" && seg.Length > MaxSectors-start {
			reason = "makes the mapped device larger than possible"
		}
		if reason != "" {
			return 0, 0, &RowError{Row: i, Start: start, Reason: reason}
		}
		start += seg.Length
	}
	for i := 0; i < len(segs); {
		seg, n := mergeFrom(segs[i:])
		i += n
		rows++
		argBytes += digits(uint64(seg.Device.Major)) + digits(uint64(seg.Device.Minor)) + digits(uint64(seg.Start)) + 2
	}
	return rows, argBytes, nil
}

// mergeFrom joins the first segment with those that continue it on the same
// device, and returns how many it took.
func mergeFrom(segs []Segment) (Segment, int) {
	seg := segs[0]
	n := 1
	for n < len(segs) && segs[n].Device == seg.Device && segs[n].Start == seg.End() {
		seg.Length += segs[n].Length
		n++
	}
	return seg, n
}

// digits returns the length of n in decimal.
func digits(n uint64) int {
	count := 1
	for ; n >= 10; n /= 10 {
		count++
	}
	return count
}

func appendLinear(b []byte, seg Segment) []byte {
	b = seg.Device.append(b)
	b = append(b, ' ')
	return strconv.AppendUint(b, uint64(seg.Start), 10)
}

// Segments returns the segments of a table that has linear rows only, one for
// each row. It returns a *RowError for a row with another target, for one whose
// arguments are not "major:minor sector", and for one that does not continue
// the row before it, so the segments always stand for the whole table.
func (t Table) Segments() ([]Segment, error) {
	segs := make([]Segment, len(t))
	var next Sectors
	for i, row := range t {
		if row.Start != next {
			return nil, &RowError{Row: i, Start: row.Start, Reason: fmt.Sprintf("does not begin at sector %d", next)}
		}
		seg, err := row.Segment()
		if err != nil {
			return nil, &RowError{Row: i, Start: row.Start, Reason: err.Error()}
		}
		segs[i] = seg
		next = row.End()
	}
	return segs, nil
}

// Segment returns the stretch of the base device that a linear row shows. Any
// other target, arguments that are not "major:minor sector", and a stretch that
// is empty or ends beyond MaxSectors are errors.
func (r Row) Segment() (Segment, error) {
	if r.Target != Linear {
		return Segment{}, fmt.Errorf("has target %q instead of %s", r.Target, Linear)
	}
	device, offset, found := strings.Cut(r.Args, " ")
	if !found {
		return Segment{}, fmt.Errorf("has arguments %q instead of \"major:minor sector\"", r.Args)
	}
	seg, err := parseArea(device, offset)
	if err != nil {
		return Segment{}, err
	}
	seg.Length = r.Length
	if reason := seg.check(); reason != "" {
		return Segment{}, fmt.Errorf("%s", reason)
	}
	return seg, nil
}

// parseArea reads a device and the sector on it, as target arguments have them.
func parseArea(device, offset string) (Segment, error) {
	dev, err := ParseDevice(device)
	if err != nil {
		return Segment{}, fmt.Errorf("has a bad argument: %w", err)
	}
	start, err := strconv.ParseUint(offset, 10, 64)
	if err != nil || Sectors(start) > MaxSectors {
		return Segment{}, fmt.Errorf("has a bad argument: %q is not a sector number", offset)
	}
	return Segment{Device: dev, Start: Sectors(start)}, nil
}
