package dmtable

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
)

// Standing compares two tables of one device, as it was and as it is now, below the
// rows of a table of linear rows that was made by looking through the device. It
// returns "" when every sector of those rows lies below the same sector of the
// device as it did, whatever else changed: rows that hold nothing of ours may come,
// go or change, and a row that was cut in two that lead to the same place is the
// same. Otherwise it returns a sentence about the first stretch that differs. What
// is not understood differs.
func (t Table) Standing(was, now Table) string {
	if was.Equal(now) {
		return ""
	}
	ours, err := t.Segments()
	if err != nil {
		return fmt.Sprintf("the rows above it are not understood: %v", err)
	}
	slices.SortFunc(ours, func(a, b Segment) int {
		return cmp.Or(cmp.Compare(a.Device.Major, b.Device.Major), cmp.Compare(a.Device.Minor, b.Device.Minor), cmp.Compare(a.Start, b.Start))
	})
	var found Sectors
	for _, row := range was {
		span, err := row.Span()
		if err != nil {
			continue // it holds nothing of ours: what was looked through was linear or striped
		}
		for i := range span.Areas {
			n, diff := span.moved(i, ours, now)
			if diff != "" {
				return diff
			}
			found += n
		}
	}
	if found != t.Size() {
		return fmt.Sprintf("%d of %d sectors of the rows above it lay below its old table", found, t.Size())
	}
	return ""
}

// moved looks at those of ours, in order, that lie in one area of the span. It
// returns how many sectors these are, and what the first of them has in the table of
// now instead, if any.
func (s *Span) moved(i int, ours []Segment, now Table) (found Sectors, diff string) {
	area := s.Areas[i]
	first := sort.Search(len(ours), func(k int) bool {
		o := ours[k]
		return cmp.Or(cmp.Compare(o.Device.Major, area.Device.Major), cmp.Compare(o.Device.Minor, area.Device.Minor), cmp.Compare(o.End(), area.Start+1)) >= 0
	})
	for _, o := range ours[first:] {
		if o.Device != area.Device || o.Start >= area.End() {
			break
		}
		at, end := max(o.Start, area.Start), min(o.End(), area.End())
		for at < end {
			start, n := s.back(i, at, end-at)
			if diff := now.leads(start, Segment{Device: area.Device, Start: at, Length: n}); diff != "" {
				return found, diff
			}
			at += n
			found += n
		}
	}
	return found, ""
}

// leads says what the sectors from at have instead of what they had, or "".
func (t Table) leads(at Sectors, had Segment) string {
	for had.Length > 0 {
		i := sort.Search(len(t), func(k int) bool { return t[k].End() > at })
		last := at + had.Length - 1
		if i == len(t) || t[i].Start > at {
			return fmt.Sprintf("its sectors %d-%d, which were %s %d, are gone", at, last, had.Device, had.Start)
		}
		span, err := t[i].Span()
		if err != nil {
			return fmt.Sprintf("its sectors %d-%d, which were %s %d, are %s now", at, last, had.Device, had.Start, t[i].target())
		}
		piece := span.Piece(at, had.Length)
		if piece.Device != had.Device || piece.Start != had.Start {
			return fmt.Sprintf("its sectors %d-%d, which were %s %d, are %s %d now", at, at+piece.Length-1, had.Device, had.Start, piece.Device, piece.Start)
		}
		at += piece.Length
		had.Start += piece.Length
		had.Length -= piece.Length
	}
	return ""
}

// RowsBelow returns those rows of host, a table that t was made by looking through, that
// hold any sector of t's linear rows. A row of t that is not linear is an error.
func (t Table) RowsBelow(host Table) (Table, error) {
	ours, err := t.Segments()
	if err != nil {
		return nil, err
	}
	var rows Table
	for _, row := range host {
		span, err := row.Span()
		if err == nil && slices.ContainsFunc(span.Areas, func(area Segment) bool { return area.meetsAny(ours) }) {
			rows = append(rows, row)
		}
	}
	return rows, nil
}

func (s Segment) meetsAny(others []Segment) bool {
	return slices.ContainsFunc(others, func(o Segment) bool {
		return o.Device == s.Device && o.Start < s.End() && s.Start < o.End()
	})
}
