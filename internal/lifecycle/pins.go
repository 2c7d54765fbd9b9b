package lifecycle

import (
	"context"
	"errors"
	"fmt"

	"dmloop/extents"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/pin"
	"dmloop/internal/record"
	"dmloop/internal/survey"
	"dmloop/internal/swap"
)

// Pin pins the image at path by hand, as map would, and leaves it pinned. It refuses
// while the image is mapped. With asSealed it takes the caller's word that the image is
// sealed.
func (s *System) Pin(ctx context.Context, path string, asSealed bool) ([]string, error) {
	// Of a mapped one, to change whose the pin is, it would have to be lifted for a moment.
	found, err := find(path)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	t, err := s.lockImage(ctx, found)
	if err != nil {
		return nil, err
	}
	defer t.end()
	img := t.img
	v, err := s.surveyor().Survey(ctx, img, path, survey.Options{AsSealed: asSealed})
	if err != nil {
		return nil, fault.Wrap(path, "", err)
	}
	if problems := withoutStack(v.Problems); len(problems) > 0 {
		return nil, fault.Refuse(path, problems)
	}
	if err := s.surveyor().NotLive(img, v.Facts.Filesystem); err != nil { // setting pins anew may lift them for a moment
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
			return nil, fault.Wrap(path, "", errors.Join(pinningError(path, err), pin.UndoFor(img.File(), v.Facts.Filesystem, "", nil, hold)))
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
	found, err := find(path)
	if err != nil {
		return err
	}
	defer found.Close()
	return s.unpin(ctx, found)
}

func (s *System) unpin(ctx context.Context, found *image.Found) error {
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
	hold := s.claim(ctx, img)
	hold.Gated = true // it is going to be let go of, whoever may open it
	return fault.Wrap(path, "", pinningError(path, pin.Undo(img.File(), facts.Filesystem, hold)))
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
