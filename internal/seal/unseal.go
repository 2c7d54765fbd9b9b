package seal

import (
	"errors"
	"os"

	"dmloop/extents"
	"dmloop/internal/advice"
)

// Unseal makes a sealed image plain again: the content that a mapping of it
// showed last, at its own offsets, and the size that it had. It finishes a
// half-way seal or unseal, and does nothing to a plain image. A plain image that
// looks sealed is refused unless said is set: whether it is one, only the caller can say. An
// image that was sealed by a kernel with another page size is unsealed as any other.
//
// f must be open for reading and writing, by nobody else, and not mapped. It
// returns *extents.Refusal, and changes nothing, when the kernel holds the image
// as a swap file, or when its record does not hold. On f2fs the image may have lost its pin afterwards.
func Unseal(f *os.File, said bool) error {
	s := newFileStore(f)
	if err := prepare(s); err != nil {
		return err
	}
	c := change{store: s, page: extents.Bytes(os.Getpagesize()), said: said, bare: s.beside}
	return errors.Join(c.unseal(), s.uncache())
}

// Adopt marks as sealed, or as half-way, what by its content is: a copy that lost its
// attribute, or an image that a dmloop before the mark has sealed. Nothing but the
// attribute is written, and an image that is marked already is left as it is. The
// caller says by it that the image is sealed: its content can be anybody's word. f
// must be as for Unseal. It returns *extents.Refusal when the content does not hold.
func Adopt(f *os.File) error {
	s := newFileStore(f)
	if s.beside {
		return extents.Refuse("", extents.Problem{Rule: extents.Unsealed, Message: "files there cannot be marked as sealed: the file system keeps no attributes", Remedy: advice.SayPinSwap})
	}
	if err := prepare(s); err != nil {
		return err
	}
	return change{store: s, page: extents.Bytes(os.Getpagesize()), said: true}.adopt()
}

func (c change) adopt() error {
	st, err := inspect(c.store, c.page, c.said)
	if err != nil {
		return err
	}
	switch st.Kind {
	case Sealed, HalfSealed:
	case Plain:
		return extents.Refuse("", extents.Problem{Rule: extents.Unsealed,
			Message: "the image holds no record of a seal", Remedy: advice.Seal})
	default:
		p, _ := st.Problem()
		return extents.Refuse("", p)
	}
	raw, err := c.attribute()
	if raw != nil || err != nil {
		return err
	}
	return c.intend(st.Record)
}

func (c change) unseal() error {
	st, err := look(c.store, c.said)
	if err != nil {
		return err
	}
	switch {
	case st.Looks != "":
		remedy := advice.AdoptOrPlain
		if c.bare {
			remedy = advice.SayPinSwap
		}
		return extents.Refuse("", extents.Problem{Rule: extents.SealCorrupt,
			Message: "nothing outside its content says that the image is sealed, though " + st.Looks,
			Remedy:  remedy})
	case st.Kind == Plain && c.bare: // an intent that was cut while it was written may be there
		return c.dropAttribute()
	case st.Kind == Plain:
		return nil
	case st.Kind == HalfSealed && !st.moved:
		return c.restore(st.Record)
	case st.Kind == Sealed, st.Kind == HalfSealed:
		if err := c.cutRest(st); err != nil {
			return err
		}
		return c.moveBack(st.Record)
	}
	p, _ := st.Problem()
	return extents.Refuse("", p)
}

// moveBack copies the moved pages back, page 0 last, and cuts the file.
func (c change) moveBack(r Record) error {
	head, err := c.read(r.Moved, r.Kept())
	if err != nil {
		return err
	}
	r.Phase, r.Sum = PhaseUnsealing, checksum(head)
	if err := c.intend(r); err != nil {
		return err
	}
	if err := c.write(r.Size()-r.PageSize, r.trailerPage()); err != nil {
		return err
	}
	if err := c.sync(); err != nil {
		return err
	}
	first := min(r.PageSize, r.Kept())
	if r.Kept() > first {
		if err := c.write(first, head[first:]); err != nil {
			return err
		}
	}
	if err := c.write(0, head[:first]); err != nil {
		return err
	}
	if err := c.sync(); err != nil {
		return err
	}
	if err := c.compare(r, 0); err != nil {
		return err
	}
	return c.restore(r)
}

// restore cuts a file whose prologue is in its place to the payload, and takes
// the intent back.
func (c change) restore(r Record) error {
	if err := c.truncate(r.Payload); err != nil {
		return err
	}
	if err := c.sync(); err != nil {
		return err
	}
	return c.done()
}

// Scrub writes zeros over what the kernel may have paged into a sealed image:
// the prologue after page 0, where nothing of the image is. It makes sure that
// no memory of a process stays in an image that is given away. f must be open
// for writing, and not active as a swap file.
func Scrub(f *os.File, r Record) error {
	s := newFileStore(f)
	if err := s.write(r.PageSize, make([]byte, r.Prologue-r.PageSize)); err != nil {
		return err
	}
	return s.uncache()
}
