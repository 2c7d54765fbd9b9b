package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/internal/image"
	"dmloop/internal/pin"
	"dmloop/internal/seal"
	"dmloop/internal/swap"
)

// surveySeal tells whether the image is sealed, and judges its record.
func (v *Survey) surveySeal(img *image.Image) error {
	st, err := seal.Inspect(img.File())
	if err != nil {
		return err
	}
	v.Content = v.Identity.Size
	switch st.Kind {
	case seal.Plain:
		return nil
	case seal.Sealed:
		v.Sealed, v.Record, v.Content = true, st.Record, st.Record.Payload
		return nil
	}
	if p, bad := st.Problem(); bad {
		v.Problems = append(v.Problems, p)
	}
	return nil
}

// claimedByUs reports whether the kernel holds the sealed image as a swap file
// because dmloop said so.
func (v *Survey) claimedByUs(img *image.Image) (bool, error) {
	if !v.Sealed || !v.Facts.Swap.Active {
		return false, nil
	}
	mark, ok, err := pin.ReadMark(img.File())
	return ok && slices.Contains(mark.Kinds, pin.Swap), err
}

// contentLayout turns the file's layout into that of what the device shows, and
// proves for a sealed image that the kernel's swap slot is no part of it.
func contentLayout(file extents.Layout, sealed bool, r seal.Record) (extents.Layout, *extents.Problem, error) {
	if !sealed {
		return file, nil, nil
	}
	content, err := seal.Content(file, r)
	if err != nil {
		return extents.Layout{}, nil, err
	}
	slots, err := seal.SwapPhysical(file, r)
	var outside *seal.SlotOutsideError
	if errors.As(err, &outside) {
		p := outside.Problem()
		return extents.Layout{}, &p, nil
	}
	if err != nil {
		return extents.Layout{}, nil, err
	}
	return content, nil, seal.Disjoint(content, slots)
}

// swapClaim takes or ends the kernel's claim on an image; package pin calls it at
// its place among the pins.
func (s *System) swapClaim(img *image.Image, on bool) error {
	entry, active, err := swap.Lookup(img.File())
	if err != nil {
		return err
	}
	switch {
	case active == on:
		s.log.Debug("swap claim is as wanted", "image", img.Path(), "active", on, "entry", entry.Path)
		return nil
	case on:
		if h, err := swap.HibernationConfigured(); err == nil && h.Configured {
			s.log.Warn("hibernation is configured and may pick the image's 4 KiB of swap: give the kernel resume= and resume_offset=", "image", img.Path())
		}
		return claimError(img.Path(), swap.Claim(img.File()))
	}
	return swap.Release(img.File())
}

// claimError says what a refused claim means for the user.
func claimError(path string, err error) error {
	problem := func(message, hint string) error {
		return refuse(path, []extents.Problem{{Rule: extents.Unpinnable, Message: message + ": " + err.Error(), Hint: hint}})
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, swap.ErrNoSlot):
		return problem("the kernel has no place for one more swap file (about 22 fit)", "unmap another sealed image, or swapoff a swap area")
	case errors.Is(err, swap.ErrNoSwap):
		return &Error{Class: KernelLacks, Subject: path, Message: "this kernel has no swap (CONFIG_SWAP)", Err: err}
	case errors.Is(err, swap.ErrRefused):
		return problem("the kernel does not take the image as a swap file", "see: dmesg")
	}
	return err
}

// Seal moves the first pages of an image aside and puts a swap header there, so
// that the kernel can hold it still. A seal or unseal that was cut is finished.
func (s *System) Seal(ctx context.Context, path string) error {
	return s.rewrite(ctx, path, func(img *image.Image, rw *os.File) error {
		layout := func() (extents.Layout, error) { return extents.Read(rw) }
		_, err := seal.Seal(rw, layout)
		return err
	})
}

// Unseal puts the image's first pages back. It refuses while the image is mapped.
func (s *System) Unseal(ctx context.Context, path string) error {
	return s.rewrite(ctx, path, func(_ *image.Image, rw *os.File) error { return seal.Unseal(rw) })
}

// rewrite runs change on a writable descriptor of an image that nobody else uses.
func (s *System) rewrite(ctx context.Context, path string, change func(*image.Image, *os.File) error) error {
	store, unlock, err := s.lockStore(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.imageFree(store, path); err != nil {
		return err
	}
	img, err := s.openImage(ctx, path)
	if err != nil {
		return err
	}
	defer img.Close()
	facts, err := img.Facts()
	if err != nil {
		return fail(path, "", err)
	}
	if problems := withHints(path, changeable(facts)); len(problems) > 0 {
		return refuse(path, problems)
	}
	release, problem, err := soleOpener(img)
	if err != nil {
		return fail(path, "", err)
	}
	if problem != nil {
		return refuse(path, withHints(path, []extents.Problem{*problem}))
	}
	release()
	rw, err := reopen(img)
	if err != nil {
		return fail(path, "", err)
	}
	err = change(img, rw)
	var refused *seal.RefusedError
	if errors.As(err, &refused) {
		err = refuse(path, withHints(path, []extents.Problem{refused.Problem}))
	}
	return errors.Join(fail(path, "", err), rw.Close())
}

// reopen opens the image's inode for writing, through its own descriptor.
func reopen(img *image.Image) (*os.File, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", img.File().Fd()), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EPERM) {
		return nil, &Error{Class: NotPermitted, Subject: img.Path(), Message: "the image is immutable",
			Hint: "clear the pins first: dmloop unpin " + shellWord(img.Path()), Err: err}
	}
	if err != nil {
		return nil, &os.PathError{Op: "open for writing", Path: img.Path(), Err: err}
	}
	return os.NewFile(uintptr(fd), img.Path()), nil
}

// changeable lists what keeps the steps by hand from touching the file at all.
func changeable(f image.Facts) []extents.Problem {
	var kept []extents.Problem
	for _, p := range f.Problems(0, f.Size) {
		switch p.Rule {
		case extents.Empty, extents.ActiveSwap, extents.Encrypted, extents.Verity, extents.Compressed:
			kept = append(kept, p)
		case extents.UnsupportedFS:
			if f.Filesystem != "btrfs" {
				kept = append(kept, p)
			}
		}
	}
	return kept
}
