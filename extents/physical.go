package extents

import (
	"cmp"
	"slices"
)

// doublyUsed returns the rows whose blocks another, earlier row of the same layout
// has too, in order of Logical. A table made of both would give one block two
// addresses. Rows without a location are left out, and those that say themselves
// that they are shared.
func (l Layout) doublyUsed() []Extent {
	located := func(e Extent) bool {
		return e.Flags&(FlagUnknown|FlagDelalloc|FlagInline|FlagTail) == 0 && e.Physical != 0 && e.Length > 0
	}
	rising := true
	end := Bytes(0)
	for _, e := range l.Extents {
		if !located(e) {
			continue
		}
		rising = rising && e.Physical >= end
		end = max(end, e.Physical+e.Length)
	}
	if rising {
		return nil
	}
	order := make([]int32, 0, len(l.Extents))
	for i, e := range l.Extents {
		if located(e) {
			order = append(order, int32(i))
		}
	}
	slices.SortFunc(order, func(a, b int32) int {
		return cmp.Or(cmp.Compare(l.Extents[a].Physical, l.Extents[b].Physical), cmp.Compare(a, b))
	})
	var clashes []Extent
	end = 0
	reaches := int32(0) // the row whose blocks end at end
	for _, i := range order {
		e := l.Extents[i]
		if later := l.Extents[max(i, reaches)]; e.Physical < end && later.Flags&FlagShared == 0 {
			clashes = append(clashes, later)
		}
		if e.Physical+e.Length > end {
			end, reaches = e.Physical+e.Length, i
		}
	}
	slices.SortFunc(clashes, func(a, b Extent) int { return cmp.Compare(a.Logical, b.Logical) })
	return slices.Compact(clashes)
}
