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
	from     extents.Bytes // the byte of the file that the layout begins at
	problems extents.Findings
}

// Resolve returns the sectors of the base devices that hold the layout's bytes, in
// the order of the file; adjacent pieces are one segment. The layout must cover
// its size from 0 without gap or overlap, otherwise nothing is resolved (rule hole or
// unknown). Bytes become sectors here: an extent that does not begin and end on a
// logical block of every base device is not-aligned; what lies beyond the end of
// the host device or of a base device is out-of-range; more pieces than a table can
// hold are too-many-extents. The layout begins at byte from of the file, whose offsets the
// problems have. The segments are only of use when there are no problems.
func (s *Stack) Resolve(layout extents.Layout, from extents.Bytes) ([]dmtable.Segment, []extents.Problem) {
	if problems := covers(layout, from); problems != nil {
		return nil, problems
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
		from:     from,
		problems: extents.Findings{From: from},
		segments: make([]dmtable.Segment, 0, min(len(layout.Extents), dmtable.MaxRows)),
	}
	for _, b := range s.Base {
		r.bases[b.Device] = b.Size
	}
	for _, e := range layout.Extents {
		if p := r.extent(e); p != nil {
			return nil, append(r.problems.Problems(), *p)
		}
	}
	return r.segments, r.problems.Problems()
}

// covers says where a layout that begins at byte from of the file does not cover its
// size, or nil.
func covers(layout extents.Layout, from extents.Bytes) []extents.Problem {
	found := extents.Findings{From: from}
	next := extents.Bytes(0)
	for _, e := range layout.Extents {
		switch {
		case e.Length <= 0 || e.Physical < 0 || e.Logical < next || e.Length > layout.Size-e.Logical:
			found.Add(extents.Unknown, next, 0, "the layout is out of order")
			return found.Problems()
		case e.Logical > next:
			found.Add(extents.Hole, next, e.Logical-next, "they have no place on the disk")
			return found.Problems()
		}
		next = e.Logical + e.Length
	}
	if next != layout.Size || next == 0 {
		found.Add(extents.Hole, next, layout.Size-next, "the layout ends before them")
	}
	return found.Problems()
}

// extent resolves one extent. The problem it returns makes going on useless.
func (r *resolver) extent(e extents.Extent) *extents.Problem {
	if e.Physical%r.block != 0 || e.Length%r.block != 0 {
		r.problems.AddRemedy(extents.NotAligned, e.Logical, e.Length,
			fmt.Sprintf("they do not lie on whole blocks of %d bytes of the base device", r.block), advice.LargerBlocks)
		return nil
	}
	at, n := dmtable.Sectors(e.Physical/dmtable.SectorSize), dmtable.Sectors(e.Length/dmtable.SectorSize)
	if at > r.size || n > r.size-at {
		inside := extents.Bytes(0)
		if at < r.size {
			inside = extents.Bytes(r.size-at) * dmtable.SectorSize
		}
		r.problems.Add(extents.OutOfRange, e.Logical+inside, e.Length-inside,
			fmt.Sprintf("they lie beyond the end of the host device %s, which has %d sectors", r.stack.HostName, r.size))
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
		r.problems.Add(extents.OutOfRange, logical, length,
			fmt.Sprintf("they lie beyond the end of the base device %s, which has %d sectors", piece.Device, r.bases[piece.Device]))
	case piece.Start%sectors != 0 || piece.Length%sectors != 0:
		r.problems.AddRemedy(extents.NotAligned, logical, length,
			fmt.Sprintf("they do not lie on whole blocks of %d bytes of the base device %s", r.block, piece.Device), advice.LargerBlocks)
	}
	if n := len(r.segments); n > 0 && r.segments[n-1].Device == piece.Device && r.segments[n-1].End() == piece.Start {
		r.segments[n-1].Length += piece.Length
		return nil
	}
	if len(r.segments) == dmtable.MaxRows {
		return &extents.Problem{
			Rule:    extents.TooManyExtents,
			Offset:  r.from + logical,
			Message: fmt.Sprintf("the image lies in more than the %d pieces that a device-mapper table can hold", dmtable.MaxRows),
			Remedy:  advice.CopyInOnePiece,
		}
	}
	r.segments = append(r.segments, piece)
	return nil
}
