package dmtable

import (
	"fmt"
	"strconv"
	"strings"
)

// Stripes are the arguments of a striped row: Chunk sectors come from each area
// in turn. A Segment in Areas is one device's whole share of the row.
type Stripes struct {
	Chunk Sectors // at least 1, at most 2^32-1 as in the kernel
	Areas []Segment
}

// Stripes returns the layout of a striped row. Any other target, arguments that
// are not "count chunk (major:minor sector)...", and a length that the kernel
// would refuse (not the same whole number of chunks on every device) are
// errors.
func (r Row) Stripes() (Stripes, error) {
	if r.Target != Striped {
		return Stripes{}, fmt.Errorf("has target %q instead of %s", r.Target, Striped)
	}
	fields := strings.Split(r.Args, " ")
	if len(fields) < 2 {
		return Stripes{}, fmt.Errorf("has arguments %q instead of \"count chunk (major:minor sector)...\"", r.Args)
	}
	count, err := strconv.ParseUint(fields[0], 10, 32)
	if err != nil || count == 0 {
		return Stripes{}, fmt.Errorf("has a bad argument: %q is not a number of stripes", fields[0])
	}
	chunk, err := strconv.ParseUint(fields[1], 10, 32)
	if err != nil || chunk == 0 {
		return Stripes{}, fmt.Errorf("has a bad argument: %q is not a chunk size in sectors", fields[1])
	}
	if uint64(len(fields)-2) != 2*count {
		return Stripes{}, fmt.Errorf("names %d devices and sectors instead of %d", len(fields)-2, 2*count)
	}
	s := Stripes{Chunk: Sectors(chunk), Areas: make([]Segment, count)}
	width := r.Length / Sectors(count)
	if r.Length%Sectors(count) != 0 || width%s.Chunk != 0 {
		return Stripes{}, fmt.Errorf("has %d sectors, which is not a whole number of chunks on every device", r.Length)
	}
	for i := range s.Areas {
		area, err := parseArea(fields[2+2*i], fields[3+2*i])
		if err != nil {
			return Stripes{}, err
		}
		area.Length = width
		if reason := area.check(); reason != "" {
			return Stripes{}, fmt.Errorf("%s", reason)
		}
		s.Areas[i] = area
	}
	return s, nil
}

// Piece returns where sector at of the row (counted from the row's first
// sector) lies, and the rest of its chunk: the longest stretch from there that
// is contiguous on one device. At must be below the row's length.
func (s Stripes) Piece(at Sectors) Segment {
	chunk, within := at/s.Chunk, at%s.Chunk
	count := Sectors(len(s.Areas))
	area := s.Areas[chunk%count]
	return Segment{
		Device: area.Device,
		Start:  area.Start + chunk/count*s.Chunk + within,
		Length: s.Chunk - within,
	}
}
