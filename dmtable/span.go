package dmtable

// Span is a linear or striped row taken apart.
type Span struct {
	Start, Length Sectors   // on the mapped device, as in the row
	Areas         []Segment // where it lies: one for linear, one for each stripe
	chunk         Sectors   // 0 for linear
}

// Span takes a linear or striped row apart. Any other target, and arguments that
// are not understood, are errors.
func (r Row) Span() (Span, error) {
	s := Span{Start: r.Start, Length: r.Length}
	if r.Target == Striped {
		stripes, err := r.Stripes()
		s.Areas, s.chunk = stripes.Areas, stripes.Chunk
		return s, err
	}
	seg, err := r.Segment()
	s.Areas = []Segment{seg}
	return s, err
}

// End returns the first sector after the span on the mapped device.
func (s *Span) End() Sectors { return s.Start + s.Length }

// Piece returns where sector at of the mapped device lies, and how much from there
// is contiguous, at most n sectors. At must lie in the span.
func (s *Span) Piece(at, n Sectors) Segment {
	at -= s.Start
	n = min(n, s.Length-at)
	if s.chunk == 0 {
		return Segment{Device: s.Areas[0].Device, Start: s.Areas[0].Start + at, Length: n}
	}
	piece := Stripes{Chunk: s.chunk, Areas: s.Areas}.Piece(at)
	piece.Length = min(piece.Length, n)
	return piece
}

// back is the way back from an area: it returns the sector of the mapped device that
// shows sector at of the area's device, and how much from there is contiguous, at
// most n sectors. At must lie in the area.
func (s *Span) back(area int, at, n Sectors) (start, length Sectors) {
	at -= s.Areas[area].Start
	if s.chunk == 0 {
		return s.Start + at, n
	}
	chunk, within := at/s.chunk, at%s.chunk
	start = s.Start + (chunk*Sectors(len(s.Areas))+Sectors(area))*s.chunk + within
	return start, min(n, s.chunk-within)
}

// Spread returns where the sectors between from and to of the mapped device lie, one
// stretch for each area that has some: those of a striped row have no gap on any of
// them. Both must lie in the span or at its end.
func (s *Span) Spread(from, to Sectors) []Segment {
	var stretches []Segment
	for k, a := range s.Areas {
		lo, hi := s.before(from-s.Start, k), s.before(to-s.Start, k)
		if lo < hi {
			stretches = append(stretches, Segment{Device: a.Device, Start: a.Start + lo, Length: hi - lo})
		}
	}
	return stretches
}

// before counts how many of the span's first n sectors lie in an area.
func (s *Span) before(n Sectors, area int) Sectors {
	if s.chunk == 0 {
		return n
	}
	chunk, whole := n/s.chunk, n/s.chunk/Sectors(len(s.Areas))*s.chunk
	switch turn := chunk % Sectors(len(s.Areas)); {
	case turn > Sectors(area):
		return whole + s.chunk
	case turn == Sectors(area):
		return whole + n%s.chunk
	}
	return whole
}
