package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/pin"
	"dmloop/internal/record"
	"dmloop/internal/swap"
)

// unpinnable predicts the rule of this name: whether a pin of grade guarded or
// better can be had for the image as it is. Setting the pins has the last word.
func (v *Survey) unpinnable() *extents.Problem {
	grade := v.resulting(pin.Wanted(v.Facts.Filesystem, v.Sealed))
	problem := func(message string, remedy extents.Remedy) *extents.Problem {
		return &extents.Problem{Rule: extents.Unpinnable, Message: message, Remedy: remedy}
	}
	switch {
	case v.Facts.Filesystem == "btrfs" && !v.Sealed:
		return nil // the rule unsealed says it better
	case v.Foreign && pin.GradeOf(pin.Evidence{Filesystem: v.Facts.Filesystem, Reflink: v.Facts.Reflink, InForce: v.InForce, Proof: true}) == pin.Unsafe:
		return problem("somebody made the file immutable, so the pin that is needed here cannot be set", advice.ClearFlag)
	case grade == pin.Unsafe:
		return problem("no pin that holds the blocks can be had on "+v.Facts.Filesystem, advice.MoveImage)
	case v.Facts.ReadOnly && !v.Facts.Immutable() && v.onReadOnlyDevice:
		return problem("the file system is on a read-only device, so the image cannot be pinned",
			advice.MapReadOnly)
	case v.Facts.ReadOnly && !v.Facts.Immutable():
		return problem("the file system is mounted read-only, so the image cannot be pinned", advice.RemountWritable.Of(v.Facts.Mount.Point))
	case v.Facts.Filesystem == "f2fs" && v.Facts.Mount.HasSuperOption("mode=lfs"):
		// f2fs_ioc_set_pin_file and f2fs_swap_activate refuse it with EINVAL.
		return problem("f2fs is mounted with mode=lfs, which rewrites nothing in place and therefore neither pins a file nor takes one for swap",
			advice.MountWithoutLFS)
	case v.Facts.Filesystem == "f2fs" && !v.Sealed && !v.Facts.Pin.Pinned && !pinsWrittenFiles(kernelVersion()):
		return problem("this kernel's f2fs pins only files without blocks (EFBIG)",
			advice.PinFirst)
	}
	return nil
}

// resulting is the grade when every pin that is wanted can be set.
func (v *Survey) resulting(wanted []pin.Kind) pin.Grade {
	return pin.GradeOf(pin.Evidence{Filesystem: v.Facts.Filesystem, Reflink: v.Facts.Reflink,
		InForce: pin.Resulting(v.Facts.Filesystem, wanted), Proof: true})
}

// lacksGate reports whether a guard has to deny opens of the image when these pins are
// set, and this kernel lets none do so. Where the kernel does not tell, that is said.
func (s *System) lacksGate(v *Survey, wanted []pin.Kind) bool {
	if v.resulting(wanted) != pin.Guarded {
		return false
	}
	denies, err := s.kernelDenies()
	switch {
	case errors.Is(err, fs.ErrPermission):
		s.log.Warn("not checked without root: whether this kernel can deny opens, which the image's pin needs", "image", v.Path)
	case err != nil:
		s.log.Warn("not checked: whether this kernel can deny opens, which the image's pin needs", "image", v.Path, "error", err)
	}
	return err == nil && !denies
}

// gateless is the rule unpinnable where a guard would have to deny opens and cannot.
func gateless() extents.Problem {
	return extents.Problem{Rule: extents.Unpinnable,
		Message: "the pin has a hole that only a guard closes, and this kernel cannot deny opens (CONFIG_FANOTIFY_ACCESS_PERMISSIONS)",
		Remedy:  advice.SealOrUnsafe}
}

// Pin pins the image at path by hand, as map would, and leaves it pinned. It refuses
// while the image is mapped. With asSealed it takes the caller's word that the image is
// sealed.
func (s *System) Pin(ctx context.Context, path string, asSealed bool) ([]string, error) {
	// Of a mapped one, to change whose the pin is, it would have to be lifted for a moment.
	_, img, done, err := s.lockImage(ctx, path)
	if err != nil {
		return nil, err
	}
	defer done()
	v, err := s.survey(ctx, img, path, SurveyOptions{AsSealed: asSealed})
	if err != nil {
		return nil, fault.Wrap(path, "", err)
	}
	if problems := withoutStack(v.Problems); len(problems) > 0 {
		return nil, fault.Refuse(path, problems)
	}
	if err := s.notLive(img, v.Facts.Filesystem); err != nil { // setting pins anew may lift them for a moment
		return nil, err
	}
	hold := s.claim(ctx, img)
	kinds := pin.Wanted(v.Facts.Filesystem, v.Sealed)
	if v.Sealed {
		hold.Want = &v.Record
	}
	if _, err := pin.Set(img.File(), v.Facts.Filesystem, "", kinds, hold); err != nil {
		return nil, fault.Wrap(path, "", pinningError(path, err))
	}
	if !v.Sealed || v.Foreign {
		if err := s.proveOnce(ctx, img, path); err != nil {
			return nil, fault.Wrap(path, "", errors.Join(pinningError(path, err), pin.UndoFor(img.File(), v.Facts.Filesystem, "", hold)))
		}
	}
	inForce, err := pinsInForce(img, record.Record{Image: record.Image{Filesystem: v.Facts.Filesystem}, Sealed: v.Sealed}, swap.Active)
	if err != nil {
		return nil, fault.Wrap(path, "", err)
	}
	names := make([]string, 0, len(inForce))
	for _, k := range inForce {
		names = append(names, string(k))
	}
	return names, nil
}

// withoutStack leaves out the rules about what lies below the file system: a pin
// needs no device-mapper.
func withoutStack(problems []extents.Problem) []extents.Problem {
	var kept []extents.Problem
	for _, p := range problems {
		switch p.Rule {
		case extents.MountedDirectly, extents.UnresolvableStack, extents.OutOfRange, extents.Overlap:
		default:
			kept = append(kept, p)
		}
	}
	return kept
}

// Unpin clears the pins that dmloop set on the image at path. It refuses while the
// image is mapped.
func (s *System) Unpin(ctx context.Context, path string) error {
	_, img, done, err := s.lockImage(ctx, path)
	if err != nil {
		return err
	}
	defer done()
	facts, err := img.Facts()
	if err != nil {
		return fault.Wrap(path, "", err)
	}
	if err := s.notLive(img, facts.Filesystem); err != nil {
		return err
	}
	return fault.Wrap(path, "", pinningError(path, pin.Undo(img.File(), facts.Filesystem, s.claim(ctx, img))))
}

// proveOnce proves that nobody else has an image open that is pinned now: whoever was on
// the way when the flag was set has gone.
func (s *System) proveOnce(ctx context.Context, img *image.Image, path string) error {
	lease, err := s.soleOpener(ctx, img, path, s.patience.openers)
	if err != nil {
		return err
	}
	return lease.Release()
}

// pinError says what a refused pin means.
func (j *mapJob) pinError(err error) error {
	var classed *fault.Error
	if err = pinningError(j.survey.Path, err); errors.As(err, &classed) {
		return err
	}
	return fmt.Errorf("the image cannot be pinned: %w", err)
}
