package seal

import (
	"cmp"
	"errors"
	"fmt"
	"os"

	"dmloop/extents"
	"dmloop/internal/advice"
)

// Kind is what an image is, as far as sealing goes.
type Kind int

// The kinds.
const (
	Plain         Kind = iota // nothing outside the content says that it is sealed
	Sealed                    // sealed, whole, for this kernel's page size
	HalfSealed                // a seal or unseal was cut, or a sealed file made longer; Seal and Unseal both finish it
	Corrupt                   // marked as sealed, and the record does not hold
	OtherPageSize             // sealed or half sealed by a kernel with another page size
)

// String returns the kind as output shows it.
func (k Kind) String() string {
	names := [...]string{"plain", "sealed", "half-sealed", "seal-corrupt", "other-page-size"}
	if k < 0 || int(k) >= len(names) {
		return fmt.Sprintf("kind %d", int(k))
	}
	return names[k]
}

// State is what Inspect found.
type State struct {
	Kind   Kind
	Size   extents.Bytes  // of the file
	Record Record         // when Kind is Sealed, HalfSealed or OtherPageSize
	Reason string         // one clause that says why; empty when Kind is Plain or Sealed
	Head   []byte         // what was read of the file: its first 64 KiB
	Tail   []byte         // and its last sector, nil where that was not looked at
	Looks  string         // when Kind is Plain: what in the content looks like a seal of dmloop, which proves nothing
	moved  bool           // when HalfSealed: the content of the prologue is whole in the moved pages, otherwise in its place
	remedy extents.Remedy // when Corrupt: what to do, if that is not to look for a backup
}

// Moved reports whether the moved pages hold the whole content of the prologue, so
// that nothing of the image is lost with what stands in its place.
func (s State) Moved() bool { return s.Kind == Sealed || s.Kind == HalfSealed && s.moved }

// Problem returns the rule that an image of this state breaks, and false when
// it breaks none: when it is plain or sealed.
func (s State) Problem() (extents.Problem, bool) {
	switch s.Kind {
	case Plain, Sealed:
		return extents.Problem{}, false
	case HalfSealed:
		return extents.Problem{
			Rule: extents.SealCorrupt, Message: s.Reason,
			Remedy: advice.FinishSeal,
		}, true
	case OtherPageSize:
		return extents.Problem{
			Rule: extents.Unpinnable, Length: s.Record.PageSize, Message: s.Reason,
			Remedy: advice.SealForThisKernel,
		}, true
	}
	return extents.Problem{
		Rule: extents.SealCorrupt, Message: s.Reason,
		Remedy: s.remedy,
	}, true
}

// Inspect tells the state of an image. The extended attribute decides whether it is
// sealed: whoever writes the content, through a plain mapping too, can write a record
// that fits. Only where said is set, because something else outside the content says
// that the image is sealed (the administrator, a record of the mapping), the content
// is believed without the attribute.
//
// It reads the first 64 KiB, the last
// sector and the attribute, and for a half-way image the prologue, all
// from the disk and not from the page cache. It writes nothing; f may be open
// for reading only, but nobody else may read by the same open file at the same
// time: it is switched to direct I/O for a moment. A caller without CAP_SYS_ADMIN does
// not see the attribute.
//
// The error is of reading; what is wrong with the image is in the State.
func Inspect(f *os.File, said bool) (State, error) {
	return inspect(newFileStore(f), extents.Bytes(os.Getpagesize()), said)
}

// inspect is look for a kernel with pages of page bytes, which can hold no image that
// was sealed for pages of another size: it would read the header at another place.
func inspect(s store, page extents.Bytes, said bool) (State, error) {
	st, err := look(s, said)
	if err == nil && (st.Kind == Sealed || st.Kind == HalfSealed) && st.Record.PageSize != page {
		st.Kind = OtherPageSize
		st.Reason = fmt.Sprintf("sealed by a kernel with pages of %d bytes, this one has %d", st.Record.PageSize, page)
	}
	return st, err
}

// look looks for what decides in this order: the attribute, and where the image is
// said to be sealed the record in page 0 and the trailer. The first that is there is
// the only one that is believed.
func look(s store, said bool) (State, error) {
	size, err := s.size()
	if err != nil {
		return State{}, err
	}
	head, err := s.read(0, maxPageSize)
	if err != nil {
		return State{}, err
	}
	raw, err := s.attribute()
	if err != nil {
		return State{}, err
	}
	var st State
	if raw != nil {
		st, err = inspectAttribute(s, raw, head, size)
	} else {
		st, err = inspectContent(s, head, size)
	}
	if err != nil {
		return State{}, err
	}
	if raw == nil && !said && st.Kind != Plain {
		st = State{Kind: Plain, Looks: cmp.Or(st.Reason, "it begins as an image that dmloop sealed")}
	}
	st.Size, st.Head = size, head
	return st, nil
}

// inspectAttribute judges a file that has the extended attribute.
func inspectAttribute(s store, raw, head []byte, size extents.Bytes) (State, error) {
	r, err := Decode(raw)
	switch {
	case err != nil:
		return corrupt("attribute %s: %v", Attribute, err), nil
	case r.Phase == PhaseSealed:
		return inspectSealed(r, head, size), nil
	case size < r.Payload || size > r.Size():
		return corrupt("attribute %s says that an image of %d bytes was being changed, the file has %d: it was replaced since",
			Attribute, r.Payload, size), nil
	}
	marked, err := DecodePage(head)
	other := err == nil && !marked.place(r)
	st, jerr := judge(s, r, err == nil && !other, size)
	if other && st.Kind == Corrupt { // else it is content that looks so
		st.Reason = fmt.Sprintf("attribute %s and page 0 are of two different sealings", Attribute)
	}
	return st, jerr
}

// inspectSealed judges a file whose attribute says that it was sealed as r says. Page
// 0 has to say the very same: it is what the kernel is going to read.
func inspectSealed(r Record, head []byte, size extents.Bytes) State {
	page, err := DecodePage(head)
	switch {
	case err == nil && page.place(r):
		return inspectSize(r, size)
	case err == nil:
		return corrupt("attribute %s and page 0 are of two different sealings", Attribute)
	}
	st := corrupt("page 0: %v; the attribute says that bytes 0 to %d were moved to %d and that the image has %d bytes",
		err, r.Kept()-1, r.Moved, r.Payload)
	if errors.Is(err, ErrNoRecord) {
		st.remedy = advice.DropMarkOrRestore.Of(Attribute)
	}
	return st
}

// inspectSize compares the size of a file that is sealed as r says.
func inspectSize(r Record, size extents.Bytes) State {
	switch {
	case size < r.Size():
		return corrupt("the record is of a file of %d bytes, this one has %d", r.Size(), size)
	case size > r.Size():
		// The kernel lets even an active swap file be made longer.
		return State{Kind: HalfSealed, Record: r, moved: true,
			Reason: fmt.Sprintf("the file was made longer than the %d bytes it had when it was sealed; the rest is not part of the image", r.Size())}
	}
	return State{Kind: Sealed, Record: r}
}

// inspectContent judges a file without the attribute by page 0 and the trailer.
func inspectContent(s store, head []byte, size extents.Bytes) (State, error) {
	r, pageErr := DecodePage(head)
	if pageErr == nil {
		return inspectSize(r, size), nil
	}
	var last []byte
	if size >= sectorSize && size%sectorSize == 0 {
		var err error
		if last, err = s.read(size-sectorSize, sectorSize); err != nil {
			return State{}, err
		}
		t, err := Decode(last)
		switch {
		case err == nil && t.Size() == size && t.Phase != PhaseSealed:
			return judge(s, t, false, size)
		case err == nil && t.Size() == size:
			return corrupt("page 0: %v; the trailer says that bytes 0 to %d were moved to %d and that the image has %d bytes",
				pageErr, t.Kept()-1, t.Moved, t.Payload), nil
		case err != nil && !errors.Is(err, ErrNoRecord):
			return corrupt("trailer in the last sector: %v", err), nil
		}
	}
	if !errors.Is(pageErr, ErrNoRecord) {
		return corrupt("page 0: %v", pageErr), nil
	}
	return State{Kind: Plain, Tail: last}, nil
}

// judge says where the content of the prologue is whole in an image that was
// being changed as r says. While page 0 is the swap header it can only be in
// the moved pages: the header is written when they are durable, and they are
// given up when it is gone. Else the checksum decides.
func judge(s store, r Record, header bool, size extents.Bytes) (State, error) {
	st := State{Kind: HalfSealed, Record: r, Reason: fmt.Sprintf("%v was cut before it was complete", r.Phase)}
	if header {
		if size != r.Size() {
			return corrupt("the record is of a file of %d bytes, this one has %d", r.Size(), size), nil
		}
		st.moved = true
		return st, nil
	}
	for _, at := range []extents.Bytes{0, r.Moved} {
		b, err := s.read(at, r.Kept())
		if err != nil {
			return State{}, err
		}
		if extents.Bytes(len(b)) == r.Kept() && checksum(b) == r.Sum {
			st.moved = at != 0
			return st, nil
		}
	}
	st = corrupt("%v was cut, and the content has been changed since: neither bytes 0 to %d nor the copy at %d are what they were",
		r.Phase, r.Kept()-1, r.Moved)
	if size == r.Payload {
		st.remedy = advice.DropMark.Of(Attribute)
	}
	return st, nil
}

func corrupt(format string, args ...any) State {
	return State{Kind: Corrupt, Reason: fmt.Sprintf(format, args...)}
}
