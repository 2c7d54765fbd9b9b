package blockdev

import (
	"fmt"
	"sort"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
)

// compile takes a table of linear and striped rows apart. It returns nil for a row
// of another kind, or one that is not understood.
func compile(table dmtable.Table) []dmtable.Span {
	rows := make([]dmtable.Span, 0, len(table))
	for _, r := range table {
		span, err := r.Span()
		if err != nil {
			return nil
		}
		rows = append(rows, span)
	}
	return rows
}

// resolver is one call of Resolve.
type resolver struct {
	stack    *Stack
	rows     []dmtable.Span
	size     dmtable.Sectors // of the host device
	block    extents.Bytes
	bases    map[dmtable.Device]dmtable.Sectors
	segments []dmtable.Segment
	problems problems
}

// Resolve returns the sectors of the base devices behind the layout's bytes, in
// the order of the file; adjacent pieces are one segment. The layout must cover
// its size from 0 without gap or overlap, else nothing is resolved (rule hole or
// unknown). Bytes become sectors here: an extent that does not begin and end on a
// logical block of every base device is not-aligned; what lies behind the end of
// the host device or of a base device is out-of-range; more pieces than a table can
// hold are too-many-extents. Problems have offsets in the layout. The segments are
// only of use when there are no problems.
func (s *Stack) Resolve(layout extents.Layout) ([]dmtable.Segment, []extents.Problem) {
	if p := covers(layout); p != nil {
		return nil, []extents.Problem{*p}
	}
	rows := compile(s.HostTable)
	if rows == nil || s.HostTable.Validate(dmtable.Limits{}) != nil {
		return nil, []extents.Problem{*unresolvable(fmt.Sprintf("the table of the host device %s is not understood", s.HostName), extents.Remedy{})}
	}
	r := resolver{
		stack:    s,
		rows:     rows,
		size:     s.HostTable.Size(),
		block:    s.LogicalBlock(),
		bases:    map[dmtable.Device]dmtable.Sectors{},
		segments: make([]dmtable.Segment, 0, min(len(layout.Extents), dmtable.MaxRows)),
	}
	for _, b := range s.Base {
		r.bases[b.Device] = b.Size
	}
	for _, e := range layout.Extents {
		if p := r.extent(e); p != nil {
			return nil, append(r.problems.list(), *p)
		}
	}
	return r.segments, r.problems.list()
}

// covers tells where the layout does not cover its size, or nil.
func covers(layout extents.Layout) *extents.Problem {
	refuse := func(rule extents.Rule, offset, length extents.Bytes, what string) *extents.Problem {
		return &extents.Problem{Rule: rule, Offset: offset, Length: length, Message: what}
	}
	next := extents.Bytes(0)
	for _, e := range layout.Extents {
		switch {
		case e.Length <= 0 || e.Physical < 0 || e.Logical < next || e.Length > layout.Size-e.Logical:
			return refuse(extents.Unknown, next, 0, fmt.Sprintf("the layout is out of order at byte %d", next))
		case e.Logical > next:
			return refuse(extents.Hole, next, e.Logical-next, fmt.Sprintf("bytes %d-%d have no place on the disk", next, e.Logical-1))
		}
		next = e.Logical + e.Length
	}
	if next != layout.Size || next == 0 {
		return refuse(extents.Hole, next, layout.Size-next, fmt.Sprintf("the layout ends at byte %d of %d", next, layout.Size))
	}
	return nil
}

// extent resolves one extent. The problem it returns makes going on useless.
func (r *resolver) extent(e extents.Extent) *extents.Problem {
	if e.Physical%r.block != 0 || e.Length%r.block != 0 {
		r.problems.add(extents.NotAligned, e.Logical, e.Length,
			fmt.Sprintf("do not lie on whole blocks of %d bytes of the base device", r.block))
		return nil
	}
	at, n := dmtable.Sectors(e.Physical/dmtable.SectorSize), dmtable.Sectors(e.Length/dmtable.SectorSize)
	if at > r.size || n > r.size-at {
		inside := extents.Bytes(0)
		if at < r.size {
			inside = extents.Bytes(r.size-at) * dmtable.SectorSize
		}
		r.problems.add(extents.OutOfRange, e.Logical+inside, e.Length-inside,
			fmt.Sprintf("lie behind the end of the host device %s, which has %d sectors", r.stack.HostName, r.size))
		return nil
	}
	// The last row that begins at or before the sector.
	i := sort.Search(len(r.rows), func(i int) bool { return r.rows[i].Start > at }) - 1
	logical := e.Logical
	for n > 0 {
		if at == r.rows[i].End() {
			i++
		}
		piece := r.rows[i].Piece(at, n)
		if p := r.append(piece, logical); p != nil {
			return p
		}
		at += piece.Length
		n -= piece.Length
		logical += extents.Bytes(piece.Length) * dmtable.SectorSize
	}
	return nil
}

// append checks a piece against its base device and adds it.
func (r *resolver) append(piece dmtable.Segment, logical extents.Bytes) *extents.Problem {
	length := extents.Bytes(piece.Length) * dmtable.SectorSize
	sectors := dmtable.Sectors(r.block / dmtable.SectorSize)
	switch {
	case piece.End() > r.bases[piece.Device]:
		r.problems.add(extents.OutOfRange, logical, length,
			fmt.Sprintf("lie behind the end of the base device %s, which has %d sectors", piece.Device, r.bases[piece.Device]))
	case piece.Start%sectors != 0 || piece.Length%sectors != 0:
		r.problems.add(extents.NotAligned, logical, length,
			fmt.Sprintf("do not lie on whole blocks of %d bytes of the base device %s", r.block, piece.Device))
	}
	if n := len(r.segments); n > 0 && r.segments[n-1].Device == piece.Device && r.segments[n-1].End() == piece.Start {
		r.segments[n-1].Length += piece.Length
		return nil
	}
	if len(r.segments) == dmtable.MaxRows {
		return &extents.Problem{
			Rule:    extents.TooManyExtents,
			Offset:  logical,
			Message: fmt.Sprintf("the image lies in more than the %d pieces that a device-mapper table can hold", dmtable.MaxRows),
			Remedy:  advice.CopyInOnePiece,
		}
	}
	r.segments = append(r.segments, piece)
	return nil
}
