package extents

import (
	"fmt"
	"slices"
)

// Clip returns the layout without what lies beyond the end of the file: xfs and
// others preallocate there, and trim it when they like. The file's own bytes keep
// their place. When rows beyond the end are left out, the last row that stays gets
// FlagLast: the kernel's list went on to the end. The result may share its rows with l.
func (l Layout) Clip() Layout {
	if n := len(l.Extents); n == 0 || !slices.ContainsFunc(l.Extents, func(e Extent) bool { return e.end() > l.Size || e.Logical >= l.Size }) {
		return l
	}
	return l.cut(0, l.Size)
}

// Window returns the layout of length bytes of the file from offset, as if they
// were a file of their own: its offsets count from 0. The window must lie within
// the file and must not be empty. It need not begin or end on a block border;
// Problems says when it does not.
func (l Layout) Window(offset, length Bytes) (Layout, error) {
	if offset < 0 || length <= 0 || offset > l.Size || length > l.Size-offset {
		return Layout{}, fmt.Errorf("window of %d bytes at byte %d is not within a file of %d bytes", length, offset, l.Size)
	}
	if offset == 0 && length == l.Size {
		return l.Clip(), nil
	}
	window := l.cut(offset, offset+length)
	for i := range window.Extents {
		window.Extents[i].Logical -= offset
	}
	window.Size = length
	return window, nil
}

// cut returns a copy of l with only the bytes in [from, to) of the file.
func (l Layout) cut(from, to Bytes) Layout {
	inside := func(e Extent) bool { return e.Logical < to && e.end() > from }
	count := 0
	for _, e := range l.Extents {
		if inside(e) {
			count++
		}
	}
	rows := make([]Extent, 0, count)
	ended := false
	for _, e := range l.Extents {
		if inside(e) {
			rows = append(rows, e.trim(from, to))
		} else if e.Logical >= to {
			ended = true
		}
	}
	if ended && len(rows) > 0 {
		rows[len(rows)-1].Flags |= FlagLast
	}
	return Layout{Size: l.Size, Extents: rows}
}

// Merge returns the layout with rows made one that follow each other in the file
// and on the disk with equal flags; FlagLast and FlagMerged do not count as a
// difference and stay on the result when any row had them. Merge never changes
// where a byte of the file lies. The result may share its rows with l.
func (l Layout) Merge() Layout {
	pieces := l.pieces()
	if pieces == len(l.Extents) {
		return l
	}
	rows := make([]Extent, 0, pieces)
	for i, e := range l.Extents {
		if i > 0 && e.continues(l.Extents[i-1]) {
			last := &rows[len(rows)-1]
			last.Length += e.Length
			last.Flags |= e.Flags
			continue
		}
		rows = append(rows, e)
	}
	return Layout{Size: l.Size, Extents: rows}
}

// pieces counts the rows that Merge would return.
func (l Layout) pieces() int {
	count := 0
	for i, e := range l.Extents {
		if i == 0 || !e.continues(l.Extents[i-1]) {
			count++
		}
	}
	return count
}

// ordered reports whether the rows have a length, run forward and do not overlap.
func (l Layout) ordered() bool {
	end := Bytes(0)
	for _, e := range l.Extents {
		if e.Logical < end || e.Length <= 0 {
			return false
		}
		end = e.end()
	}
	return true
}
