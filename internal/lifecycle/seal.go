package lifecycle

import (
	"context"
	"errors"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/backing"
	"dmloop/internal/claim"
	"dmloop/internal/fault"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
	"dmloop/internal/pin"
	"dmloop/internal/seal"
	"dmloop/internal/survey"
	"dmloop/internal/swap"
)

// claim is the kernel's hold on an image, as package pin takes and ends it.
func (s *System) claim(ctx context.Context, img *image.Image) *claim.Claim {
	return &claim.Claim{Context: ctx, Image: img, Log: s.log, Wait: s.Waiting(img.Path())}
}

// pinningError says what it means that pins cannot be set or cleared.
func pinningError(path string, err error) error {
	var broken *extents.Refusal
	var failed *swap.Error
	switch {
	case errors.As(err, &broken):
		return fault.Refuse(path, broken.Problems)
	case errors.Is(err, swap.ErrLeased):
		return fault.Refuse(path, []extents.Problem{{Rule: extents.OpenElsewhere,
			Message: "somebody holds a lease on the file and has been asked to give it up", Remedy: advice.SeeLease}})
	case errors.As(err, &failed) && failed.Op == "swapoff":
		return releaseError(path, err)
	case errors.As(err, &failed):
		return claimError(path, err)
	}
	return err
}

// releaseError says what a claim that cannot be ended means for the user.
func releaseError(path string, err error) error {
	switch {
	case errors.Is(err, swap.ErrNoMemory):
		return &fault.Error{Class: fault.Failed, Subject: path, Message: "the page of memory that the kernel keeps in the image cannot be read back", Err: err,
			Remedy: advice.FreeMemory}
	case errors.Is(err, swap.ErrReadOnlyFS):
		return &fault.Error{Class: fault.Failed, Subject: path, Message: "the kernel still holds the image as a swap file", Err: err,
			Remedy: advice.MakeHostWritable}
	}
	return err
}

// claimError says what a refused claim means for the user.
func claimError(path string, err error) error {
	problem := func(message string, remedy extents.Remedy) error {
		return fault.Refuse(path, []extents.Problem{{Rule: extents.Unpinnable, Message: message + ": " + err.Error(), Remedy: remedy}})
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, swap.ErrNoSlot):
		return problem("the kernel has no room for another swap file (22 to 28 fit, depending on its configuration)",
			advice.FreeSwapPlace)
	case errors.Is(err, swap.ErrRecovered):
		// f2fs, seen on 7.3: a file that the mount after a crash recovered has no cache
		// of extents until it is read again (f2fs_precache_extents in fs/f2fs/file.c).
		return problem("the kernel does not accept the image as a swap file, perhaps because a mount after a crash recovered it",
			advice.ReadAnew)
	case errors.Is(err, swap.ErrBusy):
		return &fault.Error{Class: fault.Busy, Subject: path, Message: "the file system is busy with a change that excludes swap files (on btrfs a balance, or a device that is added, removed or resized)", Err: err,
			Remedy: advice.WaitForBalance}
	case errors.Is(err, swap.ErrNoSwap):
		return &fault.Error{Class: fault.KernelLacks, Subject: path, Message: "this kernel has no swap (CONFIG_SWAP)", Err: err}
	case errors.Is(err, swap.ErrRefused):
		return problem("the kernel does not accept the image as a swap file", advice.SeeKernelLog)
	}
	return err
}

// Seal moves the first pages of an image aside and puts a swap header there, so
// that the kernel can hold it still. A seal or unseal that was cut is finished. With
// said, an image whose content says that it is sealed is treated as sealed.
func (s *System) Seal(ctx context.Context, path string, said bool) error {
	found, err := find(path)
	if err != nil {
		return err
	}
	defer found.Close()
	return s.seal(ctx, found, said)
}

func (s *System) seal(ctx context.Context, found *image.Found, said bool) error {
	path := found.Given()
	return s.rewrite(ctx, found, func(img *image.Image, facts image.Facts, rw *os.File, lease *image.Lease) error {
		st, err := seal.Inspect(rw, said)
		if err != nil {
			return err
		}
		if st.Looks != "" && fstype.Of(facts.Kind()).Bare {
			// Where no mark could say so, an image that is sealed looks like one that is not.
			return extents.Refuse("", extents.Problem{Rule: extents.SealCorrupt, Remedy: advice.SayPinSwap,
				Message: "it looks sealed already, and nobody says so: " + st.Looks})
		}
		survey.NoteLooks(s.log, path, facts, st)
		o := seal.Options{Said: said, Layout: func() (extents.Layout, error) {
			return s.sealLayout(survey.File{Path: path, Facts: facts}, img, rw)
		}}
		if fstype.Of(facts.Kind()).Bare {
			o.Device = func() error { return image.SyncDevice(facts.Mount, facts.Device) }
		}
		if fstype.Of(facts.Kind()).Unproven && !st.Record.Written {
			if err := seal.CanSeal(rw, o); err != nil {
				return err
			}
			if err := backing.WriteAll(ctx, rw, path, lease, s.progress); err != nil {
				return err
			}
			o.Written = true
		}
		_, err = seal.Seal(rw, o)
		if p := claim.Exposed(facts, s.surveyor().Gated(facts, "") == nil); err == nil && p != nil {
			s.log.Warn("the image is sealed, and map will refuse it: "+p.Message, "hint", fault.HowTo{Image: path, Remedy: p.Remedy})
		}
		return err
	})
}

// AdoptSeal marks an image as sealed that by its content is: a copy that lost the
// attribute. Nothing else of it is changed.
func (s *System) AdoptSeal(ctx context.Context, path string) error {
	found, err := find(path)
	if err != nil {
		return err
	}
	defer found.Close()
	return s.rewrite(ctx, found, func(_ *image.Image, _ image.Facts, rw *os.File, _ *image.Lease) error { return seal.Adopt(rw) })
}

// sealLayout reads the layout of a file that is being sealed, in addresses of the host
// device. What no map would take is refused while nothing is changed yet.
func (s *System) sealLayout(f survey.File, img *image.Image, rw *os.File) (extents.Layout, error) {
	file, err := extents.Read(rw)
	if err != nil || len(file.Problems(f.Facts.BlockSize, 0)) > 0 {
		return file, err // package seal refuses it
	}
	_, onHost, problems, err := s.surveyor().HostLayout(img, f, true, file)
	if err == nil && len(problems) > 0 {
		err = extents.Refuse("", problems[0])
	}
	return onHost, err
}

// Unseal puts the image's first pages back. It refuses while the image is mapped. With
// said, an image whose content says that it is sealed is taken for sealed.
func (s *System) Unseal(ctx context.Context, path string, said bool) error {
	found, err := find(path)
	if err != nil {
		return err
	}
	defer found.Close()
	return s.rewrite(ctx, found, func(_ *image.Image, _ image.Facts, rw *os.File, _ *image.Lease) error { return seal.Unseal(rw, said) })
}

// rewrite runs change on a writable descriptor of an image that nobody else uses.
func (s *System) rewrite(ctx context.Context, found *image.Found, change func(*image.Image, image.Facts, *os.File, *image.Lease) error) error {
	path := found.Given()
	t, err := s.lockImage(ctx, found)
	if err != nil {
		return err
	}
	defer t.end()
	img := t.img
	facts, err := img.Facts()
	if err != nil {
		return fault.Wrap(path, "", err)
	}
	if err := s.surveyor().NotLive(img, facts.Filesystem); err != nil {
		return err
	}
	problems, err := changeable(img, facts)
	if err != nil {
		return fault.Wrap(path, "", err)
	}
	if len(problems) > 0 {
		return fault.Refuse(path, problems)
	}
	rw, err := reopen(img)
	if err != nil {
		return fault.Wrap(path, "", err)
	}
	writable, err := image.Adopt(rw)
	if err != nil {
		return errors.Join(fault.Wrap(path, "", err), rw.Close())
	}
	defer writable.Close()
	img.Close() // for the lease: its descriptor would be somebody else's
	lease, err := s.soleOpener(ctx, writable, path, s.patience.openers)
	if err != nil {
		return fault.Wrap(path, "", pinningError(path, err))
	}
	defer lease.Release() //nolint:errcheck // until then whoever wants to open the file waits; closing it ends the lease as well
	err = change(writable, facts, rw, lease)
	var refused *extents.Refusal
	if errors.As(err, &refused) {
		survey.ByFormat(rw, path, facts, refused.Problems)
		err = fault.Refuse(path, refused.Problems)
	}
	return fault.Wrap(path, "", err)
}

// reopen opens the image's inode for writing, through its own descriptor.
func reopen(img *image.Image) (*os.File, error) {
	rw, err := img.OpenForWriting()
	if errors.Is(err, unix.EPERM) {
		remedy := advice.ClearPins
		if _, marked, merr := pin.ReadMark(img.File()); merr == nil && !marked {
			remedy = advice.ClearOthersFlag
		}
		return nil, &fault.Error{Class: fault.NotPermitted, Subject: img.Path(), Message: "the image is immutable", Remedy: remedy, Err: err}
	}
	if err != nil {
		return nil, openError(img.Path(), err)
	}
	return rw, nil
}

// changeable lists what keeps the steps by hand from touching the file at all.
func changeable(img *image.Image, f image.Facts) ([]extents.Problem, error) {
	mark, marked, err := pin.ReadMark(img.File())
	if err != nil {
		return nil, err
	}
	var kept []extents.Problem
	for _, p := range f.Problems(0, f.Size) {
		switch p.Rule {
		case extents.ActiveSwap:
			if marked && slices.Contains(mark.Kinds, pin.Swap) { // swapoff would fail at the immutable flag
				p.Remedy = advice.Unpin
			}
			kept = append(kept, p)
		case extents.Empty, extents.Encrypted, extents.Verity, extents.Compressed:
			kept = append(kept, p)
		case extents.UnsupportedFS:
			if !fstype.Of(f.Filesystem).OwnAddresses {
				kept = append(kept, p)
			}
		}
	}
	return kept, nil
}
