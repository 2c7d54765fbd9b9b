package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/record"
)

// WithPatience bounds how long a use case waits for the lock of another command.
// Without it that is a minute.
func (s *System) WithPatience(d time.Duration) *System {
	s.patience.lock = d
	return s
}

// WithLeasePatience bounds how long a use case waits for those who have an image open.
// Without it, or with 0, that is five seconds.
func (s *System) WithLeasePatience(d time.Duration) *System {
	if d > 0 {
		s.patience.openers = d
	}
	return s
}

// EnsureShim is Shim where the device may be there already: the shim that an earlier
// run made of the same block device will do. It says whether it was there.
func (s *System) EnsureShim(ctx context.Context, path, name string) (device string, there bool, err error) {
	mangledName, err := shimName(path, name)
	if err != nil {
		return "", false, err
	}
	conn, err := s.mapper()
	if err != nil {
		device, err = s.Shim(ctx, path, name) // it says what is in the way first
		return device, false, err
	}
	if there, err = s.shimIs(conn, path, mangledName); there || err != nil {
		if there {
			err = conn.Link(mangledName)
		}
		return "/dev/mapper/" + mangledName, there, err
	}
	device, err = s.Shim(ctx, path, name)
	if fault.ClassOf(err) == fault.Busy {
		// Somebody may have made it since we looked.
		if there, _ = s.shimIs(conn, path, mangledName); there {
			return "/dev/mapper/" + mangledName, true, nil
		}
	}
	return device, false, err
}

// shimIs reports whether the device of this name is a live shim of the block device
// at path; any other device of this name is an error.
func (s *System) shimIs(conn *mapper.Mapper, path, name string) (bool, error) {
	info, table, err := conn.State(dm.ByName(name))
	if errors.Is(err, dm.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fault.Wrap(name, "", err)
	}
	if halfMade(info) {
		return false, nil // Shim makes it anew
	}
	dev, err := blockDevice(path)
	if err != nil {
		return false, err
	}
	size, err := blockdev.DeviceSize(s.sysfs, dev)
	if err != nil {
		return false, fault.Wrap(path, "", err)
	}
	shows, err := table.Segments()
	same := err == nil && len(shows) == 1 && shows[0].Device == dev && shows[0].Start == 0 && shows[0].Length <= size // the device may have grown
	if !strings.HasPrefix(info.UUID, record.ShimPrefix) || !same || info.Suspended {
		return false, &fault.Error{Class: fault.Busy, Subject: name, Message: "a device-mapper device of this name exists and is not a shim of " + path,
			Remedy: advice.SeeTable.Of(name)}
	}
	return true, nil
}

// ShimBelow returns the device that the shim of this name shows.
func (s *System) ShimBelow(name string) (dmtable.Device, error) {
	var none dmtable.Device
	mangledName, err := mangled("", name)
	if err != nil {
		return none, err
	}
	conn, err := s.mapper()
	if err != nil {
		return none, err
	}
	info, table, err := conn.State(dm.ByName(mangledName))
	switch {
	case errors.Is(err, dm.ErrNotFound):
		return none, &fault.Error{Class: fault.NotFound, Subject: name, Message: "no such shim"}
	case err != nil:
		return none, fault.Wrap(name, "", err)
	case !strings.HasPrefix(info.UUID, record.ShimPrefix):
		return none, notAShim(name)
	}
	below, err := table.Segments()
	if err != nil || len(below) != 1 {
		return none, fault.Wrap(name, "", err) // a half-made one shows nothing
	}
	return below[0].Device, nil
}

func notAShim(name string) error {
	return &fault.Error{Class: fault.Usage, Subject: name, Message: "not a shim of dmloop"}
}

// RemoveShim removes the shim of this name; one that is not there is not an error.
func (s *System) RemoveShim(ctx context.Context, name string) error {
	name, err := mangled("", name)
	if err != nil {
		return err
	}
	t, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer t.end()
	conn, err := s.mapper()
	if err != nil {
		return err
	}
	info, err := conn.Info(dm.ByName(name))
	if errors.Is(err, dm.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fault.Wrap(name, "", err)
	}
	if !strings.HasPrefix(info.UUID, record.ShimPrefix) {
		return notAShim(name)
	}
	_, err = conn.RemoveDevice(name, info.UUID)
	var busy *mapper.BusyError
	if errors.As(err, &busy) {
		return &fault.Error{Class: fault.Busy, Subject: name, Message: "the shim is in use by " + conn.Named(info.Device), Err: err, Remedy: advice.UnmountShim}
	}
	return fault.Wrap(name, "", err)
}

// EnsureMapped is Map where the mapping may be there already: one of this name made
// of the same file will do while it is sound. It says whether it was there.
func (s *System) EnsureMapped(ctx context.Context, path string, o MapOptions) (st Status, there bool, err error) {
	name, uuid, err := o.request(path)
	if err != nil {
		return Status{}, false, err
	}
	found, missing := find(path) // a mapping may be there whose image went elsewhere
	if missing == nil {
		defer found.Close()
	}
	if st, there, err = s.mappedAs(ctx, found, path, name); there || err != nil {
		return st, there, err
	}
	if missing != nil {
		return Status{}, false, missing
	}
	st, err = s.mapFound(ctx, found, name, uuid, o)
	if fault.ClassOf(err) == fault.Busy {
		// Another run may have been quicker.
		if have, there, _ := s.mappedAs(ctx, found, path, name); there {
			return have, true, nil
		}
	}
	return st, false, err
}

// mappedAs reports whether a sound mapping of this name is made of the file at path, which
// is nil when nothing is there; a broken one, or one of another file, is an error.
func (s *System) mappedAs(ctx context.Context, file *image.Found, path, name string) (Status, bool, error) {
	found, err := s.List(ctx, name)
	if fault.ClassOf(err) == fault.NotFound {
		return Status{}, false, nil
	}
	if err != nil || len(found) == 0 {
		return Status{}, false, err
	}
	st := found[0]
	switch {
	case st.Name != name:
		return Status{}, false, nil // found by a file of this name
	case st.State == guard.Mapping, st.State == guard.Releasing:
		return st, false, nil // Map finishes that first
	case st.State.Broken():
		return st, false, &fault.Error{Class: fault.StaleMapping, Subject: name, Message: fmt.Sprintf("the mapping is %s: %s", st.State, st.Reason),
			Remedy: advice.UnmapAndCheck.Of(path)}
	case !s.madeOf(st, file, path):
		return st, false, &fault.Error{Class: fault.Busy, Subject: name, Message: "the mapping of this name is made of " + st.Image,
			Remedy: advice.SeeStatus.Of(name)}
	}
	return st, true, nil
}

// madeOf reports whether the mapping is one of the file at path: of its inode, or where
// nothing is any more, of a file that was there.
func (s *System) madeOf(st Status, file *image.Found, path string) bool {
	if file == nil {
		return st.Image == path
	}
	store, err := s.openStore(false)
	if err != nil || store == nil {
		return false
	}
	defer store.Close()
	m, err := store.Head(st.Name)
	return err == nil && isOf(m, file.Identity())
}
