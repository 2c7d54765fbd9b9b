package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/backing"
	"dmloop/internal/blockdev"
	"dmloop/internal/fault"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
	"dmloop/internal/pin"
	"dmloop/internal/seal"
	"dmloop/internal/survey"
)

// GrowOptions are the choices of `dmloop grow`.
type GrowOptions struct {
	Size     extents.Bytes // of the content, in bytes; with More what is added to it
	More     bool
	Mapped   bool // only one that is mapped: its device is wanted
	Unsafe   bool // also where nothing keeps others out while the immutable flag is off
	Progress func(done, total extents.Bytes)
}

// Grown is what `dmloop grow` did.
type Grown struct {
	Name    string // of the mapping; empty when the image is not mapped
	Device  string // likewise
	Image   string
	Old     extents.Bytes // size of the content before
	Size    extents.Bytes // and now
	Extents int           // pieces that the file lies in now
	Sealed  bool
	GPT     bool // a GPT is in it, whose copy is not at the end any more
}

// of returns the new size of what is old bytes long.
func (o GrowOptions) of(subject string, old extents.Bytes) (extents.Bytes, error) {
	size := o.Size
	if o.More {
		size += old
	}
	switch {
	case size < 0:
		return 0, &fault.Error{Class: fault.Usage, Subject: subject, Message: "that is more than a file can hold"}
	case size < old:
		return 0, &fault.Error{Class: fault.Usage, Subject: subject,
			Message: fmt.Sprintf("it has %d bytes, and an image is never made shorter: what is at its end would be lost", old), Remedy: advice.CopyToShrink}
	}
	return size, nil
}

// Grow makes an image longer, named by its path or by the name of its mapping. A mapping goes
// on meanwhile, and its device is longer afterwards. Besides fault.Error it returns the errors of
// package backing as they are.
func (s *System) Grow(ctx context.Context, target string, o GrowOptions) (Grown, error) {
	t, err := s.lock(ctx)
	if err != nil {
		return Grown{}, err
	}
	m, err := findRecord(t.store, target)
	if err == nil {
		defer t.end()
		return s.growMapped(ctx, t, m, o)
	}
	t.end()
	if fault.ClassOf(err) != fault.NotFound {
		return Grown{}, err
	}
	found, missing := find(target)
	if missing != nil {
		if fault.ClassOf(missing) == fault.NotFound {
			missing = err // which says what name may be meant
		}
		return Grown{}, missing
	}
	defer found.Close()
	if o.Mapped {
		return Grown{}, &fault.Error{Class: fault.Usage, Subject: target, Message: "it is not mapped, and only the file system on a device can be made longer with its own tool",
			Remedy: advice.MapToResize}
	}
	return s.growFound(ctx, found, o)
}

// growFound is Grow of an image that is not mapped. A seal or unseal that was cut is
// finished first.
func (s *System) growFound(ctx context.Context, found *image.Found, o GrowOptions) (Grown, error) {
	if err := s.awake(ctx, sleepers{}, found.Given(), found.Handle()); err != nil {
		return Grown{}, err
	}
	half, err := s.halfSealed(ctx, found)
	if err == nil && half {
		err = s.seal(ctx, found, false)
	}
	if err != nil {
		return Grown{}, err
	}
	path := found.Given()
	t, err := s.lockImage(ctx, found)
	if err != nil {
		return Grown{}, err
	}
	defer t.end()
	v, err := s.growable(ctx, t.img, path)
	if err != nil {
		return Grown{}, fault.Wrap(path, "", err)
	}
	size, err := o.of(path, v.Content)
	if err != nil {
		return Grown{}, err
	}
	g := Grown{Image: path, Old: v.Content, Size: size, Extents: len(v.Layout.Extents), Sealed: v.Sealed}
	problems := ofContent(v.Problems)
	unfilled := size == v.Content && !v.Sealed && len(problems) > 0 && !slices.ContainsFunc(problems, notUnfilled)
	switch {
	case len(problems) > 0 && !unfilled:
		return Grown{}, fault.Refuse(path, problems)
	case size == v.Content && !unfilled:
		return g, nil
	}
	if problems := backing.SizeProblems(size, v.Facts.BlockSize); len(problems) > 0 {
		return Grown{}, extents.Refuse(path, problems...)
	}
	err = s.growUnmapped(ctx, t.img, v, &g, o)
	return g, err
}

// ofContent leaves out the rules about what lies below the file system and about pins: those
// are for map.
func ofContent(problems []extents.Problem) []extents.Problem {
	return slices.DeleteFunc(withoutStack(problems), func(p extents.Problem) bool { return p.Rule == extents.Unsealed || p.Rule == extents.Unpinnable })
}

// notUnfilled tells problems apart from what a grow leaves that was killed.
func notUnfilled(p extents.Problem) bool {
	return p.Rule != extents.Hole && p.Rule != extents.Unwritten
}

// halfSealed reports whether a seal or unseal of the image was cut.
func (s *System) halfSealed(ctx context.Context, found *image.Found) (bool, error) {
	img, err := s.open(ctx, found)
	if err != nil {
		return false, err
	}
	defer img.Close()
	st, err := seal.Inspect(img.File(), false)
	return st.Kind == seal.HalfSealed, fault.Wrap(found.Given(), "", err)
}

// growable looks at an image that is not mapped, as far as that changes nothing.
func (s *System) growable(ctx context.Context, img *image.Image, path string) (*survey.Report, error) {
	facts, err := img.Facts()
	if err != nil {
		return nil, err
	}
	if fstype.Of(facts.Kind()).Bare {
		// No mark says whether the image is sealed, and appending to one that is would end it.
		return nil, fault.Refuse(path, []extents.Problem{{Rule: extents.UnsupportedFS, Remedy: advice.GrowBare,
			Message: "images on " + facts.Kind() + " are not made longer by grow"}})
	}
	if err := s.surveyor().NotLive(img, facts.Filesystem); err != nil {
		return nil, err
	}
	problems, err := changeable(img, facts)
	if err != nil {
		return nil, err
	}
	if len(problems) > 0 {
		return nil, fault.Refuse(path, problems)
	}
	return s.surveyor().Survey(ctx, img, path, survey.Options{})
}

// growUnmapped makes the file longer under a write lease, which keeps others out while the
// flag of a pin by hand is lifted. That is set again whatever becomes of it.
func (s *System) growUnmapped(ctx context.Context, img *image.Image, v *survey.Report, g *Grown, o GrowOptions) error {
	mark, marked, err := pin.ReadMark(img.File())
	if err == nil && marked {
		err = s.lift(img, v.Facts.Filesystem, mark)
	}
	if err != nil {
		return fault.Wrap(v.Path, "", err)
	}
	again := func(img *image.Image) error {
		if !marked {
			return nil
		}
		_, err := pin.Set(img.File(), v.Facts.Filesystem, mark.Name, mark.Kinds, s.claim(ctx, img))
		return pinningError(v.Path, err)
	}
	rw, err := reopen(img)
	if err != nil {
		return errors.Join(fault.Wrap(v.Path, "", err), again(img))
	}
	writable, err := image.Adopt(rw)
	if err != nil {
		return errors.Join(fault.Wrap(v.Path, "", err), rw.Close(), again(img))
	}
	defer writable.Close()
	img.Close() // for the lease: its descriptor would be somebody else's
	lease, err := s.soleOpener(ctx, writable, v.Path, s.patience.openers)
	if err != nil {
		return errors.Join(fault.Wrap(v.Path, "", pinningError(v.Path, err)), again(writable))
	}
	err = s.lengthen(ctx, writable, lease, v, g, o)
	if err = errors.Join(err, again(writable), lease.Release()); err != nil || !marked {
		return err
	}
	return fault.Wrap(v.Path, "", pinningError(v.Path, s.proveOnce(ctx, writable, v.Path)))
}

// lift takes the flag of a pin by hand off.
func (s *System) lift(img *image.Image, filesystem string, mark pin.Mark) error {
	if slices.Contains(mark.Kinds, pin.Swap) {
		return &fault.Error{Class: fault.NotPermitted, Subject: img.Path(), Message: "the image is pinned as a swap file", Remedy: advice.ClearPins}
	}
	err := pin.Lift(img.File(), filesystem)
	if errors.Is(err, pin.ErrForeign) {
		return nil // whoever opens it for writing says so
	}
	return err
}

// lengthen makes the file longer that nobody else has open, and notes what it is then. A sealed image
// is unsealed for that and sealed again, also when it could not become longer.
func (s *System) lengthen(ctx context.Context, img *image.Image, lease *image.Lease, v *survey.Report, g *Grown, o GrowOptions) error {
	whole := func() error {
		if ok, err := lease.Whole(); ok || err != nil {
			return err
		}
		return fault.Refuse(v.Path, []extents.Problem{{Rule: extents.OpenElsewhere,
			Message: "somebody opened the file while it was made longer", Remedy: advice.SeeOpeners}})
	}
	options := backing.GrowOptions{Progress: o.Progress, Guard: whole}
	if v.Sealed {
		if err := sealing(v, seal.Unseal(img.File(), false)); err != nil {
			return err
		}
	}
	var err error
	if g.Size == g.Old {
		err = backing.Complete(ctx, img, options)
	} else {
		err = backing.Grow(ctx, img, g.Size, options)
	}
	if err == nil {
		g.GPT, err = blockdev.HasGPT(img.File())
	}
	if v.Sealed {
		layout := func() (extents.Layout, error) {
			return s.sealLayout(survey.File{Path: v.Path, Facts: v.Facts}, img, img.File())
		}
		_, again := seal.Seal(img.File(), seal.Options{Layout: layout})
		if again != nil && err == nil { // no room for its pages, perhaps: it is what it was
			err = errors.Join(sealing(v, again), backing.Shorten(img.File(), g.Old))
			_, again = seal.Seal(img.File(), seal.Options{Layout: layout})
		}
		err = errors.Join(err, sealing(v, again))
	}
	if err != nil {
		return err
	}
	layout, err := extents.Read(img.File())
	g.Extents = len(layout.Clip().Merge().Extents)
	return err
}

// sealing gives what package seal refuses the image's name.
func sealing(v *survey.Report, err error) error {
	var refused *extents.Refusal
	if errors.As(err, &refused) {
		return fault.Refuse(v.Path, refused.Problems)
	}
	return fault.Wrap(v.Path, "", err)
}
