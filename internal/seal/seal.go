package seal

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/swap"
)

// LayoutFunc reads the layout of the file again, up to its size, with addresses
// on the block device: on btrfs, translated through the chunk tree.
type LayoutFunc func() (extents.Layout, error)

// Options say what Seal cannot see by itself.
type Options struct {
	Said    bool       // the caller was told that the image is sealed (see Inspect)
	Written bool       // every byte of the file was written by the caller, durably, and by nobody since
	Layout  LayoutFunc // of the file that is sealed
	// Device makes durable what the file system has written to its device so far, and nothing
	// more; nil where a journal orders that. exFAT keeps a file in one piece without a chain
	// of clusters, and makes the chain when it is continued elsewhere
	// (exfat_chain_cont_cluster): the chain has to be on the disk before the folder says that
	// there is one, or a power cut leaves the file's first cluster alone.
	Device func() error
}

// Seal makes a plain image a sealed one and returns its record. The work is a
// few pages whatever the size of the image. It finishes a half-way seal or
// unseal, and does nothing to an image that is sealed, unless its record does not say yet
// that every byte was written. What an image holds is
// content, also when it looks like a seal or like a swap area, unless the caller has
// been told that the image is sealed (see Inspect).
//
// f must be open for reading and writing, by nobody else, and not mapped; the
// caller has run the rules for a mappable image, of which Seal looks only at those
// of the layout. It returns *extents.Refusal when the image cannot be sealed as it
// is; then, and when the disk is full, the file is what it was. After any other
// error the image is half-way at worst.
func Seal(f *os.File, o Options) (Record, error) {
	s := newFileStore(f)
	if err := prepare(s); err != nil {
		return Record{}, err
	}
	c := change{store: s, page: extents.Bytes(os.Getpagesize()), said: o.Said, written: o.Written, layout: o.Layout, device: o.Device, bare: s.beside, most: s.most()}
	r, err := c.seal()
	return r, errors.Join(err, s.uncache())
}

// CanSeal returns the *extents.Refusal that Seal would return, as far as it can be told while
// nothing is written: work that comes before sealing is not done in vain.
func CanSeal(f *os.File, o Options) error {
	s := newFileStore(f)
	if err := prepare(s); err != nil {
		return err
	}
	c := change{store: s, page: extents.Bytes(os.Getpagesize()), said: o.Said, layout: o.Layout, most: s.most()}
	st, err := inspect(c.store, c.page, c.said)
	if err != nil {
		return err
	}
	switch st.Kind {
	case Plain:
		_, err = c.plan(st.Size)
	case Sealed, HalfSealed:
	default:
		p, _ := st.Problem()
		err = extents.Refuse("", p)
	}
	return err
}

// prepare refuses a file that the kernel holds, and empties the page cache, so
// that nothing that it holds from before a mapping is written or read.
func prepare(s fileStore) error {
	active, err := swap.Active(s.f)
	if err != nil {
		return err
	}
	if active {
		return extents.Refuse("", extents.Problem{
			Rule: extents.ActiveSwap, Message: "the kernel holds the image as an active swap file",
			Remedy: advice.UnmapOrSwapoff,
		})
	}
	return s.uncache()
}

// change is one run of sealing or unsealing.
type change struct {
	store
	page    extents.Bytes // the kernel's page size
	said    bool          // something other than the attribute says that the image is sealed
	written bool          // every byte of the file was written
	layout  LayoutFunc
	device  func() error  // see Options
	bare    bool          // nothing but the word of somebody says that the image is sealed
	most    extents.Bytes // size that a file can have at most; 0: any
}

func (c change) seal() (Record, error) {
	st, err := inspect(c.store, c.page, c.said)
	if err != nil {
		return Record{}, err
	}
	r := st.Record
	proven := !c.written || r.Written
	r.Written = r.Written || c.written
	switch {
	case st.Kind == Sealed && proven:
		return r, nil
	case st.Kind == Sealed: // of page 0 and of the trailer one sector changes
		return c.mark(r)
	case st.Kind == HalfSealed && st.moved:
		if err := c.cutRest(st); err != nil {
			return r, err
		}
		return c.mark(r)
	case st.Kind == Plain:
		if r, err = c.plan(st.Size); err != nil {
			return Record{}, err
		}
	case st.Kind != HalfSealed:
		p, _ := st.Problem()
		return Record{}, extents.Refuse("", p)
	}
	if r, err = c.move(r); err != nil {
		return Record{}, errors.Join(err, c.restore(r))
	}
	return c.mark(r)
}

// move records the intent and copies the prologue beyond the payload, durably.
// The prologue itself is not written. When the grown file shows that a longer
// prologue is needed it starts again with one; it returns the record in force
// also with an error.
func (c change) move(r Record) (Record, error) {
	for {
		head, err := c.read(0, r.Kept())
		if err != nil {
			return r, err
		}
		r.Phase, r.Sum = PhaseSealing, checksum(head)
		if err := c.intend(r); err != nil {
			return r, err
		}
		if err := c.lengthen(r); err != nil {
			return r, err
		}
		tail := make([]byte, r.Moved+r.Prologue-r.Payload)
		copy(tail[r.Moved-r.Payload:], head)
		if err := c.write(r.Payload, tail); err != nil {
			return r, err
		}
		if err := c.sync(); err != nil {
			return r, err
		}
		l, err := c.layout()
		if err != nil {
			return r, err
		}
		need, err := prologueFor(l, c.page)
		var few *NoSlotError
		if errors.As(err, &few) {
			need, err = 2*r.Prologue, nil
		}
		if err == nil {
			err = tooLong(need)
		}
		if err != nil {
			return r, err
		}
		if need <= r.Prologue {
			return r, c.compare(r, r.Moved)
		}
		longer := newRecord(r.Payload, need, c.page, r.UUID)
		longer.Written = r.Written
		if err := c.fits(longer); err != nil {
			return r, err
		}
		r = longer
	}
}

// lengthen gives the file its blocks, its size and its trailer, the last two by
// one write: a file that is longer than the image is marked. A pinned file on f2fs
// does not take a write beyond its end (EIO since about 6.13; f2fs_write_begin), so
// that there the size comes first.
func (c change) lengthen(r Record) error {
	if err := c.reserve(r.Payload, r.Size()-r.Payload); err != nil {
		return err
	}
	err := c.write(r.Size()-c.page, r.trailerPage())
	if err == nil && c.device != nil { // before anything syncs the file itself
		return c.device()
	}
	if !errors.Is(err, unix.EIO) {
		return err
	}
	if err := c.grow(r.Payload, r.Size()-r.Payload); err != nil {
		return err
	}
	return c.write(r.Size()-c.page, r.trailerPage())
}

// mark writes the swap header over page 0 of an image whose moved pages are
// whole, and turns the intent into the mark of a sealed image, in the trailer as
// well: if page 0 is damaged from then on the image is not taken for a half-way one.
func (c change) mark(r Record) (Record, error) {
	if err := c.write(0, HeaderPage(r)); err != nil {
		return r, err
	}
	if err := c.sync(); err != nil {
		return r, err
	}
	r.Phase, r.Sum = PhaseSealed, 0
	if err := c.write(r.Size()-c.page, r.trailerPage()); err != nil {
		return r, err
	}
	return r, c.intend(r)
}

// cutRest cuts a file that is longer than it was sealed. That comes before all
// else, for an intent is only believed in a file that is not.
func (c change) cutRest(st State) error {
	if st.Size <= st.Record.Size() {
		return nil
	}
	if err := c.truncate(st.Record.Size()); err != nil {
		return err
	}
	return c.sync()
}

// intend makes the attribute durable: an intent, or the mark of a sealed image.
func (c change) intend(r Record) error {
	err := c.setAttribute(r.Encode())
	if errors.Is(err, unix.EOPNOTSUPP) {
		return extents.Refuse("", extents.Problem{
			Rule: extents.Unpinnable, Message: "the file system keeps no extended attributes, so a cut could not be recovered from",
			Remedy: advice.MoveToSealable,
		})
	}
	if err != nil {
		return err
	}
	return c.sync()
}

// done takes the attribute away, durably: the image is plain.
func (c change) done() error {
	if err := c.dropAttribute(); err != nil {
		return err
	}
	return c.sync()
}

// compare reads the prologue's content back from at and proves that it is what
// the record says.
func (c change) compare(r Record, at extents.Bytes) error {
	b, err := c.read(at, r.Kept())
	if err != nil {
		return err
	}
	if extents.Bytes(len(b)) != r.Kept() || checksum(b) != r.Sum {
		return fmt.Errorf("the disk does not hold what was written at byte %d, or somebody else writes to the image", at)
	}
	return nil
}

// trailerPage returns the last page of the file: zeros, and the record at the
// beginning of its last sector.
func (r Record) trailerPage() []byte {
	p := make([]byte, r.PageSize)
	copy(p[len(p)-sectorSize:], r.Encode())
	return p
}
