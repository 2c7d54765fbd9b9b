package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/observe"
	"dmloop/internal/pin"
	"dmloop/internal/record"
)

// finish takes a mapping down to nothing: partitions, device, page cache, pins and
// then the record, in this order, whatever of it there is. It is unmap's second
// half, map's undo, and what recover does for a killed command. When a step fails
// the record stays, in state releasing with the reason. img may be nil. The end of ctx
// does not end it: a guard that was not told would go on denying opens of the image.
func (s *System) finish(ctx context.Context, store *record.Store, m *record.Record, img *image.Image) error {
	err := s.takeDown(context.WithoutCancel(ctx), m, img)
	if err == nil {
		return store.Delete(m.Name)
	}
	if m.State == guard.Releasing && m.Reason == err.Error() {
		return err // as recorded: the guard, which looks at every change, need not try again at once
	}
	m.State, m.Reason = guard.Releasing, err.Error()
	return errors.Join(err, s.unlessFull(m.Name, store.Save(*m)))
}

// unlessFull lets a release go on where a full state folder takes no new record: the old
// one stays, and to delete it takes no space. A command that is killed then leaves a
// record that says less, of a device that is gone; the next unmap of it goes on.
func (s *System) unlessFull(name string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		s.log.Warn("the state folder is full: the record does not say that the mapping is being released", "mapping", name, "folder", s.stateDir)
		return nil
	}
	return err
}

func (s *System) takeDown(ctx context.Context, m *record.Record, img *image.Image) error {
	conn, err := s.mapper()
	if err != nil {
		return err
	}
	if err := conn.RemoveParts(m); err != nil {
		return err
	}
	gone, err := conn.RemoveDevice(m.Name, m.UUID)
	if err != nil {
		return err
	}
	if !gone {
		return mapper.ErrPending
	}
	if err := s.dropWatch(ctx, m.Name); err != nil {
		s.log.Warn("the guard was not told that the mapping is gone", "mapping", m.Name, "error", err)
	}
	return s.releasePins(ctx, m, img)
}

// releasePins drops the file's page cache, so that it reads what the device wrote,
// and clears the pins that were set for this mapping.
func (s *System) releasePins(ctx context.Context, m *record.Record, img *image.Image) error {
	if img == nil {
		var err error
		if img, err = s.openToChange(ctx, *m); err != nil {
			if errors.Is(err, observe.ErrImageGone) {
				s.log.Warn("the image is gone, its pins with it", "mapping", m.Name, "image", m.Image.Path)
				return nil
			}
			return fmt.Errorf("the pins of %s are not released: %w", m.Image.Path, err)
		}
		defer img.Close()
	}
	if err := s.surveyor().NotLive(img, m.Image.Filesystem, m.UUID); err != nil {
		return fmt.Errorf("the pins of %s are not released: %w", m.Image.Path, err)
	}
	cache, err := img.DropCache(ctx)
	if err != nil {
		return fmt.Errorf("dropping the page cache of %s: %w", m.Image.Path, err)
	}
	if cache.Cached > 0 {
		s.log.Warn("pages of the image stay in memory and may be older than what the device wrote: somebody has it mapped",
			"image", m.Image.Path, "pages", cache.Cached)
	}
	if err := pin.UndoFor(img.File(), m.Image.Filesystem, m.Name, s.claim(ctx, img)); err != nil {
		return fmt.Errorf("the pins of %s are not released: %w", m.Image.Path, pinningError(m.Image.Path, err))
	}
	return nil
}

// Finish finishes or undoes what killed commands left, as every command that changes a
// mapping does first.
func (s *System) Finish(ctx context.Context) error {
	_, unlock, err := s.lockStore(ctx)
	if err == nil {
		unlock()
	}
	return err
}

// recover finishes or undoes what killed commands left: the caller holds the lock, so
// a record in a half-way state belongs to nobody. What cannot be finished yet stays
// listed, and only a log line says so: it must not stop other work.
func (s *System) recover(ctx context.Context, store *record.Store) error {
	names, err := store.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		m, err := store.Head(name)
		if err == nil && m.State != guard.Mapping && m.State != guard.Releasing {
			continue
		}
		if err == nil {
			m, err = store.Load(name)
		}
		if err != nil {
			s.log.Warn("a record cannot be read", "error", err)
			continue
		}
		img, err := s.toRelease(ctx, m)
		if err == nil {
			err = s.finish(ctx, store, &m, img)
			if img != nil {
				img.Close()
			}
		}
		var busy *mapper.BusyError
		switch {
		case errors.As(err, &busy) && len(m.Table) > 0: // it was live
			err = s.keep(ctx, store, m)
		case err == nil:
			s.released = append(s.released, m)
		}
		if err != nil {
			s.log.Warn("an earlier mapping is not released yet", "mapping", name, "error", err)
		}
	}
	return nil
}

// keep undoes an unmap that was killed before it removed the device, now that the
// device is in use: it is the mapping that it was, unless it had been torn down, by the
// guard or by that unmap.
func (s *System) keep(ctx context.Context, store *record.Store, m record.Record) error {
	conn, err := s.mapper()
	if err != nil {
		return err
	}
	live, err := conn.Table(dm.ByUUID(m.UUID))
	if err != nil {
		return err
	}
	m.State, m.Reason = guard.Healthy, ""
	if !live.Equal(m.Table) {
		m.State, m.Reason = guard.Failed, "an unmap was cut off, and the device has not the table of the mapping"
	} else if v := s.verify(ctx, m); v.State != guard.Healthy {
		m.State, m.Reason = v.State, "an unmap was cut off, and the mapping is not as it was recorded: "+v.Reason
	}
	if err := store.SaveHead(m); err != nil {
		return err
	}
	s.log.Warn("an unmap was cut off, and the device is in use: the mapping stays", "mapping", m.Name, "state", m.State)
	if s.guard == nil || !m.Guard || m.State == guard.Failed {
		return nil
	}
	return refusal(s.guard.Add(ctx, m.Name))
}

// UnmapOptions are the choices of `dmloop unmap`.
type UnmapOptions struct {
	Deferred bool // when in use, remove the device when its last user closes it
	Force    bool // when in use, let the users' I/O fail and remove it
	NameOnly bool // the target is a name, never the path of an image
}

// Unmap removes the mapping called by name or image path. When it returns nil the
// device is gone, or, with Deferred, goes when it is closed.
func (s *System) Unmap(ctx context.Context, target string, o UnmapOptions) error {
	store, unlock, err := s.lockStore(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	conn, err := s.mapper()
	if err != nil {
		return err
	}
	m, err := s.find(store, target)
	if o.NameOnly && err == nil && !slices.Contains(namesOf(target), m.Name) {
		err = noSuchMapping(target) // found by a file of this name
	}
	if err != nil {
		if fault.ClassOf(err) != fault.NotFound {
			return err
		}
		if s.justReleased(target) {
			return nil
		}
		if gone, oerr := s.unmapOrphan(ctx, store, conn, target); gone || oerr != nil {
			return oerr
		}
		return err
	}
	before := m.State
	if before == guard.Releasing && !conn.Pending(m) {
		return s.notReleased(m, errors.New(m.Reason)) // recover has just tried
	}
	open, err := openNow(conn, m, o)
	if err != nil {
		return err
	}
	if err := s.innermost(conn, m); err != nil {
		return err
	}
	img, err := s.toRelease(ctx, m)
	if err != nil {
		return err
	}
	if img != nil {
		defer img.Close()
	}
	m.State, m.Reason = guard.Releasing, ""
	if err := s.unlessFull(m.Name, store.SaveHead(m)); err != nil {
		return err
	}
	if len(open) > 0 && (o.Force || o.Deferred) {
		if o.Force {
			err = conn.CutOff(m, before) // nothing that users do to it has an effect from here on
		}
		if err == nil {
			err = conn.RemoveWhenClosed(m)
		}
	}
	if err == nil {
		err = s.finish(ctx, store, &m, img)
	}
	var busy *mapper.BusyError
	switch {
	case errors.As(err, &busy):
		m.State, m.Reason = before, ""
		return errors.Join(usedBy(conn, busy.Info, busy.Err), s.unlessFull(m.Name, store.SaveHead(m)))
	case (o.Deferred || o.Force) && (errors.Is(err, mapper.ErrPending) || conn.Pending(m)):
		m.Reason = "the device goes when its last user closes it"
		return s.unlessFull(m.Name, store.SaveHead(m))
	case err != nil:
		return s.notReleased(m, err)
	}
	return nil
}

// toRelease opens the image of a mapping that is going to be released, before anything of
// it is undone: the error says that its file system takes no changes now, and so the
// pins could not be cleared. Nil without an error is for releasePins to look into.
func (s *System) toRelease(ctx context.Context, m record.Record) (*image.Image, error) {
	if err := s.hostRuns(m); err != nil {
		return nil, err
	}
	img, err := s.openRecorded(ctx, m.Image)
	if err != nil {
		return nil, nil
	}
	if err := s.awake(ctx, m.Image.Path, int(img.File().Fd())); err != nil {
		return nil, errors.Join(err, img.Close())
	}
	return img, nil
}

// justReleased reports whether this command found target half released and finished
// that before it looked.
func (s *System) justReleased(target string) bool {
	var id image.Identity
	found, err := s.lookUp(target)
	if err == nil {
		id = found.Identity()
		found.Close()
	}
	for _, m := range s.released {
		if slices.Contains(namesOf(target), m.Name) || err == nil && isOf(m, id) {
			return true
		}
	}
	return false
}

// innermost refuses to let go of an image while another live device lies on its blocks:
// the mapping of an image inside it, whose own file system need not be mounted any more,
// or what somebody made by hand.
func (s *System) innermost(conn *mapper.Mapper, m record.Record) error {
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
	return &fault.Error{Class: fault.Busy, Subject: m.Name, Message: fmt.Sprintf("the live mapping %s lies on its blocks, of an image inside it most likely", inside[0].Name),
		Remedy: advice.UnmapInner}
}

// notReleased is the answer when the device is gone, or going, and something else
// of the mapping is not.
func (s *System) notReleased(m record.Record, err error) error {
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

// unmapOrphan removes a live device of dmloop that no record names, and reports
// whether there was one. What pinned its image only a guard that watches it knows, if
// any; unpin clears it.
func (s *System) unmapOrphan(ctx context.Context, store *record.Store, conn *mapper.Mapper, target string) (gone bool, err error) {
	info, err := conn.Info(dm.ByName(strings.TrimPrefix(target, mapper.Folder)))
	if err == nil && strings.HasPrefix(info.UUID, record.ShimPrefix) {
		return false, &fault.Error{Class: fault.NotFound, Subject: target, Message: "no such mapping: it is a shim", Remedy: advice.RemoveShim.Of(info.Name)}
	}
	if err != nil || !strings.HasPrefix(info.UUID, record.UUIDPrefix) {
		return false, nil // not a name of ours: the caller knows what to say
	}
	records, err := allRecords(store, store.Head)
	if err != nil {
		return false, err
	}
	for _, m := range records {
		if m.UUID == info.UUID {
			return false, &fault.Error{Class: fault.NotFound, Subject: target, Message: "no such mapping: the device is that of the mapping " + m.Name + ", renamed",
				Remedy: advice.Unmap.Of(m.Name)}
		}
	}
	if m, known := s.guardRecord(ctx, info.UUID); known {
		err = s.takeDown(ctx, &m, nil)
	} else {
		_, err = conn.RemoveDevice(info.Name, info.UUID)
	}
	var busy *mapper.BusyError
	if errors.As(err, &busy) {
		return false, usedBy(conn, busy.Info, busy.Err)
	}
	return err == nil, err
}

// guardRecord asks the guard for the record of the device with this uuid.
func (s *System) guardRecord(ctx context.Context, uuid string) (m record.Record, known bool) {
	name, ok := record.NameInUUID(uuid)
	if !ok || s.guard == nil || s.hung != nil {
		return m, false
	}
	ctx, cancel := context.WithTimeout(ctx, guardPatience)
	defer cancel()
	m, err := s.guard.Record(ctx, name)
	s.noteHung(err)
	return m, err == nil && m.UUID == uuid
}

// find returns the record of a mapping by its name or by its image's path.
func (s *System) find(store *record.Store, target string) (record.Record, error) {
	for _, name := range namesOf(target) {
		m, err := store.Load(name)
		switch {
		case err == nil:
			return m, nil
		case !errors.Is(err, record.ErrNotFound):
			return m, unusableRecord(store, target, "its record cannot be used", err)
		}
	}
	if found, err := s.lookUp(target); err == nil {
		defer found.Close()
		m, err := findByImage(store, found.Identity())
		if untold := (*fault.Error)(nil); errors.As(err, &untold) {
			untold.Subject = target
		}
		if err == nil || !errors.Is(err, record.ErrNotFound) {
			return m, err
		}
	}
	return record.Record{}, noSuchMapping(target)
}

// unusableRecord is what is said of a record that cannot be read: dmloop does not guess.
func unusableRecord(store *record.Store, subject, message string, err error) error {
	return &fault.Error{Class: fault.Failed, Subject: subject, Message: message, Err: err,
		Remedy: advice.RemoveByHand.Of(store.Dir())}
}

func noSuchMapping(target string) error {
	return &fault.Error{Class: fault.NotFound, Subject: target, Message: "no such mapping", Remedy: advice.SeeList}
}

// namesOf lists the device names that a user may mean: the word as it is, as `list`
// prints it, and mangled, as it was given to map; or the device's path, as map printed
// it.
func namesOf(target string) []string {
	target = strings.TrimPrefix(target, mapper.Folder)
	var names []string
	if dmtable.CheckName(target) == nil {
		names = append(names, target)
	}
	if m, err := dmtable.Mangle(target); err == nil && m != target {
		names = append(names, m)
	}
	return names
}

// isOf reports whether the mapping is one of this inode.
func isOf(m record.Record, id image.Identity) bool {
	same, _ := observe.Same(m.Image, id, observe.PlaceOf(id))
	return same == observe.TheSame
}

// findByImage returns the record of the mapping of an inode.
func findByImage(store *record.Store, id image.Identity) (record.Record, error) {
	names, err := store.Names()
	if err != nil {
		return record.Record{}, err
	}
	missing := record.ErrNotFound
	for _, name := range names {
		m, err := store.Head(name)
		if errors.Is(err, record.ErrNotFound) {
			continue
		}
		if err != nil {
			missing = err // it may be the image's
			continue
		}
		switch same, why := observe.Same(m.Image, id, observe.PlaceOf(id)); same {
		case observe.TheSame:
			return store.Load(name)
		case observe.Untold:
			missing = &fault.Error{Class: fault.Failed, Message: "whether it is the image of the mapping " + m.Name + " cannot be told: " + why.Error(),
				Remedy: advice.UnmountCopy.Of(m.Name)}
		}
	}
	return record.Record{}, missing
}
