package seal

import (
	"fmt"

	"dmloop/extents"
	"dmloop/internal/advice"
)

// Content rearranges the layout of a sealed file into the layout of what its
// device shows, Payload bytes: the prologue from the moved pages, then the rest
// from its own place. The last row is marked as the last. It returns an error when the layout
// does not cover these bytes, or is of another size than the record says.
func Content(l extents.Layout, r Record) (extents.Layout, error) {
	if l.Size != r.Size() {
		return extents.Layout{}, fmt.Errorf("the layout is of %d bytes, the sealed image has %d", l.Size, r.Size())
	}
	out := extents.Layout{Size: r.Payload}
	head, err := slice(l, r.Moved, r.Kept())
	if err != nil {
		return extents.Layout{}, err
	}
	for _, e := range head {
		e.Logical -= r.Moved
		out.Extents = append(out.Extents, e)
	}
	tail, err := slice(l, r.Kept(), r.Payload-r.Kept())
	if err != nil {
		return extents.Layout{}, err
	}
	out.Extents = append(out.Extents, tail...)
	for i := range out.Extents {
		out.Extents[i].Flags &^= extents.FlagLast
	}
	out.Extents[len(out.Extents)-1].Flags |= extents.FlagLast
	return out, nil
}

// SwapPhysical returns what the kernel may read or write by itself while it
// holds the image as a swap file: page 0, slot 0 and slot 1, in the layout's
// physical addresses. It returns an error when one of them is outside the
// prologue, as happens when a sealed image was copied to blocks of another
// alignment: then paging would overwrite content.
func SwapPhysical(l extents.Layout, r Record) ([]extents.Extent, error) {
	out, err := slice(l, 0, r.PageSize)
	if err != nil {
		return nil, err
	}
	for slot := range 2 {
		at, err := SlotRange(l, r.PageSize, slot)
		if err != nil {
			return nil, err
		}
		if at.Logical+at.Length > r.Prologue {
			return nil, &SlotOutsideError{Slot: slot, At: at, Prologue: r.Prologue}
		}
		out = append(out, at)
	}
	return out, nil
}

// SlotOutsideError says that the kernel would page into the image's content.
type SlotOutsideError struct {
	Slot     int
	At       extents.Extent
	Prologue extents.Bytes // bytes that the image keeps free for the kernel
}

func (e *SlotOutsideError) Error() string {
	return fmt.Sprintf("swap slot %d is bytes %d to %d of the file, only the first %d are free for it",
		e.Slot, e.At.Logical, e.At.Logical+e.At.Length-1, e.Prologue)
}

// Problem returns the rule that the image breaks and what to do about it.
func (e *SlotOutsideError) Problem() extents.Problem {
	return extents.Problem{
		Rule: extents.Unpinnable, Offset: e.At.Logical, Length: e.At.Length, Message: e.Error(),
		Remedy: advice.SealAnew,
	}
}

// Disjoint proves that no byte that the kernel may page into belongs to the
// content. It returns an error that names the first overlap.
func Disjoint(content extents.Layout, swap []extents.Extent) error {
	for _, c := range content.Extents {
		for _, s := range swap {
			if c.Physical < s.Physical+s.Length && s.Physical < c.Physical+c.Length {
				return fmt.Errorf("byte %d of the content lies at %d of the device, in the swap area at %d to %d",
					c.Logical, c.Physical, s.Physical, s.Physical+s.Length-1)
			}
		}
	}
	return nil
}

// slice returns the parts of the layout's extents that lie in [off,off+n) of
// the file, which they must cover.
func slice(l extents.Layout, off, n extents.Bytes) ([]extents.Extent, error) {
	var out []extents.Extent
	next, end := off, off+n
	for _, e := range l.Extents {
		if e.Logical+e.Length <= off || e.Logical >= end || n == 0 {
			continue
		}
		if e.Logical < off {
			e.Physical += off - e.Logical
			e.Length -= off - e.Logical
			e.Logical = off
		}
		e.Length = min(e.Length, end-e.Logical)
		if e.Logical != next {
			break
		}
		next += e.Length
		out = append(out, e)
	}
	if next != end {
		return nil, fmt.Errorf("the layout has a gap or an overlap at byte %d", next)
	}
	return out, nil
}
