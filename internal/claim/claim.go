// Package claim is the one place where the kernel is given a sealed image to hold as a
// swap file, and where that ends. docs/pinning.md has the order of the steps and why no
// step can be overtaken.
package claim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/image"
	"dmloop/internal/pin"
	"dmloop/internal/seal"
	"dmloop/internal/swap"
)

// Claim takes and ends the kernel's hold on one image. It implements pin.Claim.
type Claim struct {
	Context context.Context // ends the waiting for others
	Image   *image.Image    // open for reading, once in this process
	Log     *slog.Logger
	Wait    image.Wait   // for those who have the image open at the moment
	Want    *seal.Record // what was surveyed; nil when nothing was
	Unsafe  bool         // the user accepts that others may open the image
	Gated   bool         // the gate in the kernel lets nobody open it, pinned or not
}

var _ pin.Claim = (*Claim)(nil)

// Active reports whether the kernel holds the image.
func (c *Claim) Active() (bool, error) { return swap.Active(c.Image.File()) }

// Take makes the kernel hold the image, which is immutable when Take is called: from then
// on nobody new can open it for writing. The write lease shows that nobody else has it
// open, and nobody is on the way; what is read now is what was surveyed. swapon(2)
// opens the file for writing, which neither the flag nor the lease lets it do, so both
// are given up for it. That gap is closed by who may open the file at all (see Exposed),
// and by what is looked at once the kernel holds it and nobody can write to it any more.
func (c *Claim) Take(lift func() error) error {
	if err := c.exposed(); err != nil {
		return err
	}
	lease, header, err := c.prove()
	if err != nil {
		return err
	}
	if err := lift(); err != nil {
		return errors.Join(err, lease.Release())
	}
	if err := lease.Release(); err != nil {
		return err
	}
	err = swap.Claim(c.Image.File())
	switch {
	case errors.Is(err, swap.ErrActive): // somebody else's swapon since we asked
		return c.refuse("somebody else has just made the image a swap file", advice.SeeSwapon)
	case err != nil:
		return err
	}
	if err := c.verify(header); err != nil {
		return errors.Join(err, c.End())
	}
	if h, err := swap.HibernationConfigured(); err == nil && h.Configured {
		c.Log.Warn("this system is set up to suspend to disk and may pick the page of swap in the image, where that fails: name the right swap area and its offset on the kernel command line (resume=, resume_offset=)",
			"image", c.Image.Path(), "found", h.Where)
	}
	return nil
}

// prove takes the lease and reads the header below it, until nobody waits for its end.
func (c *Claim) prove() (*image.Lease, []byte, error) {
	wait := c.Wait
	for end := time.Now().Add(wait.Patience); ; wait.Patience = time.Until(end) {
		lease, err := image.AwaitSoleOpener(c.Context, c.Image.File(), wait)
		if err != nil {
			return nil, nil, err
		}
		header, err := c.header()
		if err != nil {
			return nil, nil, errors.Join(err, lease.Release())
		}
		whole, err := lease.Whole()
		if whole && err == nil {
			return lease, header, nil
		}
		if err := errors.Join(err, lease.Release()); err != nil {
			return nil, nil, err
		}
		if time.Now().After(end) {
			return nil, nil, extents.Refuse(c.Image.Path(), extents.Problem{Rule: extents.OpenElsewhere,
				Message: "somebody keeps opening the file", Remedy: advice.SeeOpeners})
		}
	}
}

// header reads page 0, which has to be what was surveyed.
func (c *Claim) header() ([]byte, error) {
	header, record, err := seal.ReadHeader(c.Image.File())
	if err == nil && c.Want != nil && record != *c.Want {
		err = fmt.Errorf("%s: the record in page 0 has just changed", c.Image.Path())
	}
	if err != nil {
		return nil, c.refuse(err.Error(), advice.StopWriters)
	}
	return header, nil
}

// Verify looks whether what the kernel holds is the one page that is meant.
func (c *Claim) Verify() error {
	if err := c.exposed(); err != nil {
		return err
	}
	header, err := c.header()
	if err != nil {
		return err
	}
	return c.verify(header)
}

// verify compares the area that is this very inode with the one page that is meant, and
// page 0, which nobody can write to any more, with what it was.
func (c *Claim) verify(header []byte) error {
	area, err := swap.Area(c.Image.File())
	if err != nil {
		return c.refuse("cannot tell how much of the image the kernel took: "+err.Error(), advice.MapByItsPath)
	}
	if page := int64(os.Getpagesize()); area.Size != page {
		return c.refuse(fmt.Sprintf("the kernel took %d bytes of the image as swap space instead of one page of %d: somebody changed its header meanwhile", area.Size, page),
			advice.SeeWriters)
	}
	now, err := c.header()
	if err == nil && !bytes.Equal(now, header) {
		err = c.refuse("page 0 changed while the kernel took the image", advice.SeeWriter)
	}
	return err
}

// End makes the kernel release the image and wipes what it may have paged to it. Who
// may not call swapoff, or has a kernel without it, has nothing to end where nothing is
// claimed.
func (c *Claim) End() error {
	err := swap.Release(c.Image.File())
	if errors.Is(err, swap.ErrNotActive) {
		return nil
	}
	if err != nil {
		if active, perr := c.Active(); perr == nil && !active {
			return nil
		}
		return err
	}
	if err := scrub(c.Image); err != nil {
		c.Log.Warn("the image still holds what the kernel paged to it, 4 KiB of some process's memory; dmloop unseal wipes it",
			"image", c.Image.Path(), "error", err)
	}
	return nil
}

// scrub wipes the kernel's part of a sealed image that nothing holds.
func scrub(img *image.Image) error {
	st, err := seal.Inspect(img.File(), true) // we have held it as a sealed image
	if err != nil {
		return err
	}
	if !st.Moved() {
		return fmt.Errorf("the image is %v now", st.Kind)
	}
	rw, err := img.OpenForWriting()
	if err != nil {
		return err
	}
	return errors.Join(seal.Scrub(rw, st.Record), rw.Close())
}

func (c *Claim) refuse(message string, remedy extents.Remedy) error {
	return extents.Refuse(c.Image.Path(), extents.Problem{Rule: extents.Unpinnable, Message: message, Remedy: remedy})
}
