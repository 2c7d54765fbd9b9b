package lifecycle

import (
	"context"
	"errors"

	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/fstype"
	"dmloop/internal/mapper"
	"dmloop/internal/observe"
	"dmloop/internal/pin"
	"dmloop/internal/record"
)

// Forgotten is what stays of a mapping whose record was given up.
type Forgotten struct {
	Name     string
	Image    string     // its path as it was when mapped; empty when the record could not be read
	Pins     []pin.Kind // set by dmloop and left on the image, as its mark says, or else as the record says
	Released bool       // nothing stays: the release could be finished after all
	Gone     bool       // the image was deleted, its pins with it
}

// Forget gives up the record of a mapping whose device is gone and whose image cannot be
// released, because its disk is away for good, say. It refuses while the device is there.
func (s *System) Forget(ctx context.Context, target string) (Forgotten, error) {
	t, err := s.lock(ctx)
	if err != nil {
		return Forgotten{}, err
	}
	defer t.end()
	m, err := findRecord(t.store, target)
	switch {
	case fault.ClassOf(err) == fault.NotFound && t.released(target):
		return Forgotten{Name: target, Released: true}, nil
	case fault.ClassOf(err) == fault.NotFound:
		return Forgotten{}, err
	case err != nil:
		return s.forgetUnreadable(ctx, t.store, target, err)
	}
	if err := s.nothingLive(m.Name, mapper.Layers(m)...); err != nil {
		return Forgotten{}, err
	}
	left := Forgotten{Name: m.Name, Image: m.Image.Path, Pins: m.OurPins()}
	img, err := s.openRecorded(ctx, m.Image)
	switch {
	case errors.Is(err, observe.ErrImageGone):
		left.Gone, left.Pins = true, nil
	case err == nil:
		defer img.Close()
		if mark, marked, err := pin.ReadMark(img.File()); err == nil && (marked || !fstype.Of(m.Image.Filesystem).Bare) {
			left.Pins = mark.Kinds
		}
	}
	err = s.forgetRecord(ctx, t.store, m.Name)
	s.sweepGate(ctx, t)
	return left, err
}

// forgetUnreadable gives up a record that cannot be read: only its name is known.
func (s *System) forgetUnreadable(ctx context.Context, store *record.Store, target string, unreadable error) (Forgotten, error) {
	names, err := store.Names()
	if err != nil {
		return Forgotten{}, err
	}
	for _, name := range namesOf(target) {
		for _, have := range names {
			if have != name {
				continue
			}
			if err := s.nothingLive(name, dm.ByName(name)); err != nil {
				return Forgotten{}, err
			}
			return Forgotten{Name: name}, s.forgetRecord(ctx, store, name)
		}
	}
	return Forgotten{}, unreadable
}

func (s *System) forgetRecord(ctx context.Context, store *record.Store, name string) error {
	if err := s.guard.drop(ctx, name); err != nil {
		s.log.Warn("the guard was not told that the mapping is given up", "mapping", name, "error", err)
	}
	return store.Delete(name)
}

// nothingLive refuses while one of the devices is there.
func (s *System) nothingLive(name string, refs ...dm.Ref) error {
	conn, err := s.mapper()
	if fault.ClassOf(err) == fault.KernelLacks && !blockdev.AnyMapped(s.sysfs) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, ref := range refs {
		info, err := conn.Info(ref)
		if errors.Is(err, dm.ErrNotFound) {
			continue
		}
		if err != nil {
			return fault.Wrap(name, "", err)
		}
		return &fault.Error{Class: fault.Busy, Subject: name, Message: "its device " + info.Name + " is still there: a record is only given up once that is gone",
			Remedy: advice.Unmap.Of(name)}
	}
	return nil
}
