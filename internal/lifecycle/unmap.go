package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/record"
)

// UnmapOptions are the choices of `dmloop unmap`.
type UnmapOptions struct {
	Deferred bool // when in use, remove the device when its last user closes it
	Force    bool // when in use, let the users' I/O fail and remove it
	NameOnly bool // the target is a name, never the path of an image
}

// unmapCase is what a word on unmap's command line turned out to stand for.
type unmapCase int

const (
	unmapMapping    unmapCase = iota // a mapping with its record
	unmapUnreleased                  // its device is gone, and the image cannot be released yet
	unmapReleased                    // a killed command's, which this one has finished by now
	unmapOrphan                      // a live device of dmloop that no record names
)

// Unmap removes the mapping called by name or image path. When it returns nil the
// device is gone, or, with Deferred, goes when it is closed.
func (s *System) Unmap(ctx context.Context, target string, o UnmapOptions) error {
	t, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer t.end()
	conn, err := s.mapper()
	if err != nil {
		return err
	}
	which, m, err := toUnmap(t, conn, target, o)
	if err != nil {
		return err
	}
	switch which {
	case unmapReleased:
		return nil
	case unmapUnreleased: // the turn began with one more try
		return notReleased(m, errors.New(m.Reason))
	case unmapOrphan:
		return s.removeOrphan(ctx, conn, m)
	default:
		return s.unmap(ctx, t, conn, m, o)
	}
}

// toUnmap says which case target is. Of an orphan it returns a record with the name and the
// uuid of its device alone.
func toUnmap(t *turn, conn *mapper.Mapper, target string, o UnmapOptions) (unmapCase, record.Record, error) {
	m, err := findRecord(t.store, target)
	if o.NameOnly && err == nil && !slices.Contains(namesOf(target), m.Name) {
		err = noSuchMapping(target) // found by a file of this name
	}
	switch {
	case err == nil && m.State == guard.Releasing && !conn.Pending(m):
		return unmapUnreleased, m, nil
	case err == nil:
		return unmapMapping, m, nil
	case fault.ClassOf(err) != fault.NotFound:
		return 0, m, err
	case t.released(target):
		return unmapReleased, m, nil
	}
	device, ierr := conn.Info(dm.ByName(strings.TrimPrefix(target, mapper.Folder)))
	switch {
	case ierr == nil && strings.HasPrefix(device.UUID, record.ShimPrefix):
		return 0, m, &fault.Error{Class: fault.NotFound, Subject: target, Message: "no such mapping: it is a shim", Remedy: advice.RemoveShim.Of(device.Name)}
	case ierr != nil || !strings.HasPrefix(device.UUID, record.UUIDPrefix):
		return 0, m, err // not a name of ours
	}
	records, err := allRecords(t.store, t.store.Head)
	if err != nil {
		return 0, m, err
	}
	for _, m := range records {
		if m.UUID == device.UUID {
			return 0, m, &fault.Error{Class: fault.NotFound, Subject: target, Message: "no such mapping: the device is that of the mapping " + m.Name + ", renamed",
				Remedy: advice.Unmap.Of(m.Name)}
		}
	}
	return unmapOrphan, record.Record{Name: device.Name, UUID: device.UUID}, nil
}

// unmap takes a mapping down that has a record.
func (s *System) unmap(ctx context.Context, t *turn, conn *mapper.Mapper, m record.Record, o UnmapOptions) error {
	open, err := openNow(conn, m, o)
	if err != nil {
		return err
	}
	if err := innermost(conn, m); err != nil {
		return err
	}
	img, err := s.toRelease(ctx, t.asleep, m)
	if err != nil {
		return err
	}
	if img != nil {
		defer img.Close()
	}
	before := m.State
	m.State, m.Reason = guard.Releasing, ""
	if err := s.unlessFull(m.Name, t.store.SaveHead(m)); err != nil {
		return err
	}
	if len(open) > 0 && o.Force {
		err = conn.CutOff(m, before) // nothing that users do to it has an effect from here on
	}
	if err == nil && len(open) > 0 && (o.Force || o.Deferred) {
		err = conn.RemoveWhenClosed(m)
	}
	if err == nil {
		err = s.finish(ctx, t.store, &m, img)
	}
	var busy *mapper.BusyError
	switch {
	case errors.As(err, &busy):
		m.State, m.Reason = before, ""
		return errors.Join(usedBy(conn, busy.Info, busy.Err), s.unlessFull(m.Name, t.store.SaveHead(m)))
	case (o.Deferred || o.Force) && (errors.Is(err, mapper.ErrPending) || conn.Pending(m)):
		m.Reason = "the device goes when its last user closes it"
		return s.unlessFull(m.Name, t.store.SaveHead(m))
	case err != nil:
		return notReleased(m, err)
	}
	return nil
}

// removeOrphan removes a live device of dmloop that no record names. What pinned its image
// only a guard that watches it knows, if any; unpin clears it.
func (s *System) removeOrphan(ctx context.Context, conn *mapper.Mapper, device record.Record) error {
	m, known := s.guard.record(ctx, device.UUID)
	var err error
	if known {
		err = s.takeDown(ctx, &m, nil)
	} else {
		_, err = conn.RemoveDevice(device.Name, device.UUID)
	}
	var busy *mapper.BusyError
	if errors.As(err, &busy) {
		return usedBy(conn, busy.Info, busy.Err)
	}
	return err
}

// openNow lists the mapping's devices that somebody has open, its own partitions
// apart, and refuses when one is in use and the options say nothing of that: before
// anything is undone, so that what is busy keeps its partitions. Something that has one
// open for a moment, as a udev worker does, is waited for.
func openNow(conn *mapper.Mapper, m record.Record, o UnmapOptions) ([]dm.Ref, error) {
	for deadline := time.Now().Add(conn.Patience); ; time.Sleep(100 * time.Millisecond) {
		open, last, err := conn.InUse(m)
		if err != nil || len(open) == 0 || o.Force || o.Deferred {
			return open, err
		}
		if time.Now().After(deadline) || conn.HeldFirmly(last.Device) {
			return nil, usedBy(conn, last, nil)
		}
	}
}

// usedBy says who uses the device.
func usedBy(conn *mapper.Mapper, info dm.Info, cause error) error {
	return &fault.Error{Class: fault.Busy, Subject: info.Name, Message: "in use by " + conn.Named(info.Device), Err: cause,
		Remedy: advice.DeferOrForce}
}

// innermost refuses to release an image while another live device lies on its blocks:
// the mapping of an image inside it, whose own file system need not be mounted any more,
// or what somebody made by hand.
func innermost(conn *mapper.Mapper, m record.Record) error {
	if m.State == guard.Failed || len(m.Table) == 0 {
		return nil
	}
	segments, err := m.Table.Segments()
	if err != nil {
		return fault.Wrap(m.Name, "", err)
	}
	others, err := conn.Strangers(m.Base.Device, m.UUID)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, dm.ErrNotFound) {
		return nil // the host device is gone, and nothing can lie inside
	}
	if err != nil {
		return fault.Wrap(m.Name, "", err)
	}
	// Where the number is another device's by now, what the host really stands on would
	// count as a stranger; releasing the pins looks again.
	host, err := conn.Info(dm.ByDevice(m.Base.Device))
	if err != nil || host.UUID != m.Base.UUID || host.Name != m.Base.Name {
		others = slices.DeleteFunc(others, func(o mapper.Stranger) bool { return !strings.HasPrefix(o.UUID, record.UUIDPrefix) })
	}
	inside, err := mapper.Sharing(segments, nil, others)
	if err != nil || len(inside) == 0 {
		return fault.Wrap(m.Name, "", err)
	}
	if !strings.HasPrefix(inside[0].UUID, record.UUIDPrefix) {
		return conn.LiveError(m.Name, inside[0])
	}
	return &fault.Error{Class: fault.Busy, Subject: m.Name, Message: fmt.Sprintf("the live mapping %s lies on its blocks, most likely that of an image inside it", inside[0].Name),
		Remedy: advice.UnmapInner}
}

// notReleased is the answer when the device is gone, or going, and something else
// of the mapping is not.
func notReleased(m record.Record, err error) error {
	if errors.Is(err, mapper.ErrPending) {
		return &fault.Error{Class: fault.Busy, Subject: m.Name, Message: err.Error(), Remedy: advice.StopUsers}
	}
	var e *fault.Error
	if errors.As(err, &e) && e.Class == fault.Busy { // another device lies on the image
		return &fault.Error{Class: fault.Busy, Subject: m.Name, Message: err.Error(), Remedy: e.Remedy}
	}
	return &fault.Error{Class: fault.Failed, Subject: m.Name, Message: err.Error(),
		Remedy: advice.ReleaseLater.Of(m.Name)}
}

// released reports whether target was found half released, and finished, when the turn
// began.
func (t *turn) released(target string) bool {
	var id image.Identity
	found, err := find(target)
	if err == nil {
		id = found.Identity()
		found.Close()
	}
	for _, m := range t.finished {
		if slices.Contains(namesOf(target), m.Name) || err == nil && isOf(m, id) {
			return true
		}
	}
	return false
}
