package lifecycle

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"dmloop/guard"
	"dmloop/internal/blockdev"
	"dmloop/internal/dm"
	"dmloop/internal/fstype"
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
// does not end it: a guard that was not told would keep denying opens of the image.
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

// unlessFull lets a release go on where a full state directory takes no new record: the old
// one stays, and to delete it takes no space. A command that is killed then leaves a
// record that says less, of a device that is gone; the next unmap of it goes on.
func (s *System) unlessFull(name string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		s.log.Warn("the state directory is full: the record does not say that the mapping is being released", "mapping", name, "folder", s.stateDir)
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
	if err := s.guard.drop(ctx, m.Name); err != nil {
		s.log.Warn("the guard was not told that the mapping is gone", "mapping", m.Name, "error", err)
	}
	if err := s.releasePins(ctx, m, img); err != nil {
		return err
	}
	return s.ungate(ctx, *m)
}

// releasePins drops the file's page cache, so that it reads what the device wrote,
// and clears the pins that were set for this mapping.
func (s *System) releasePins(ctx context.Context, m *record.Record, img *image.Image) error {
	if img == nil {
		var err error
		if img, err = s.openToChange(ctx, sleepers{}, *m); err != nil {
			if errors.Is(err, observe.ErrImageGone) {
				s.log.Warn("the image is gone, its pins with it", "mapping", m.Name, "image", m.Image.Path, "why", err)
				return nil
			}
			return fmt.Errorf("the pins of %s are not released: %w", m.Image.Path, err)
		}
		defer img.Close()
	}
	pulled := s.pulled(*m)
	if !pulled {
		if err := s.surveyor().NotLive(img, m.Image.Filesystem, m.UUID); err != nil {
			return fmt.Errorf("the pins of %s are not released: %w", m.Image.Path, err)
		}
	}
	if err := repinning(*m); err != nil {
		return err
	}
	cache, err := img.DropCache(ctx)
	if err != nil && !pulled {
		return fmt.Errorf("dropping the page cache of %s: %w", m.Image.Path, err)
	}
	if cache.Cached > 0 {
		s.log.Warn("pages of the image stay in memory and may be older than what the device wrote: somebody has it mapped",
			"image", m.Image.Path, "pages", cache.Cached)
	}
	hold := s.claim(ctx, img)
	hold.Gated = m.Gate == guard.GateBPF
	if err := pin.UndoFor(img.File(), m.Image.Filesystem, m.Name, m.OurPins(), hold); err != nil {
		return fmt.Errorf("the pins of %s are not released: %w", m.Image.Path, pinningError(m.Image.Path, err))
	}
	return nil
}

// pulled reports whether the disk that the image lies on is gone, and nothing of the image
// has to be written for its pins to be released: a claim is only the kernel's. Nobody can
// do anything to the blocks of such a disk.
func (s *System) pulled(m record.Record) bool {
	if !fstype.Of(m.Image.Filesystem).Bare || len(m.Below) == 0 {
		return false
	}
	conn, err := s.mapper()
	if err != nil {
		return false
	}
	for _, b := range m.Below {
		if h, err := blockdev.ReadHealth(s.sysfs, conn, b.Device); err != nil || h.Lost == "" || h.Name != "" { // with a name it may come back
			return false
		}
	}
	return true
}

// Finish finishes or undoes what killed commands left, as every command that changes a
// mapping does first.
func (s *System) Finish(ctx context.Context) error {
	t, err := s.lock(ctx)
	if err == nil {
		t.end()
	}
	return err
}

// recover finishes or undoes what killed commands left: the caller holds the lock, so
// a record in a half-way state belongs to nobody. What cannot be finished yet stays
// listed, and only a log line says so: it must not stop other work. It returns what was
// finished.
func (s *System) recover(ctx context.Context, t *turn) (finished []record.Record, err error) {
	store := t.store
	names, err := store.Names()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		m, err := store.Head(name)
		halfWay := m.State == guard.Mapping || m.State == guard.Releasing
		if err == nil && !halfWay && m.Growing == nil {
			continue
		}
		if err == nil {
			m, err = store.Load(name)
		}
		if err != nil {
			s.log.Warn("a record cannot be read", "error", err)
			continue
		}
		if !halfWay {
			if err := s.settleGrowth(ctx, t, m); err != nil {
				s.log.Warn("an image that was being made longer is not settled yet", "mapping", name, "error", err)
			}
			continue
		}
		switch done, err := s.recoverHalfWay(ctx, t, m); {
		case err != nil:
			s.log.Warn("an earlier mapping is not released yet", "mapping", name, "error", err)
		case done != nil:
			finished = append(finished, *done)
		}
	}
	return finished, nil
}

// recoverHalfWay finishes the release of a mapping that a killed command was making or
// releasing, and returns it. It returns none where the mapping stays, since it is in use.
func (s *System) recoverHalfWay(ctx context.Context, t *turn, m record.Record) (finished *record.Record, err error) {
	img, err := s.toRelease(ctx, t.asleep, m)
	if err != nil {
		return nil, err
	}
	err = s.finish(ctx, t.store, &m, img)
	if img != nil {
		img.Close()
	}
	var busy *mapper.BusyError
	if errors.As(err, &busy) && len(m.Table) > 0 { // it was live
		return nil, s.keep(ctx, t.store, m)
	}
	if err != nil {
		return nil, err
	}
	return &m, nil
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
		m.State, m.Reason = guard.Failed, "an unmap was interrupted, and the device does not have the table of the mapping"
	} else if v := s.verify(ctx, m); v.State != guard.Healthy {
		m.State, m.Reason = v.State, "an unmap was interrupted, and the mapping is not as it was recorded: "+v.Reason
	}
	if err := store.SaveHead(m); err != nil {
		return err
	}
	s.log.Warn("an unmap was interrupted, and the device is in use: the mapping stays", "mapping", m.Name, "state", m.State)
	if s.guard.Guard == nil || !m.Guard || m.State == guard.Failed {
		return nil
	}
	return refusal(s.guard.Add(ctx, m.Name))
}

// toRelease opens the image of a mapping that is going to be released, before anything of
// it is undone: the error says that its file system takes no changes now, and so the
// pins could not be cleared. Nil without an error is for releasePins to look into.
func (s *System) toRelease(ctx context.Context, known sleepers, m record.Record) (*image.Image, error) {
	if err := s.hostRuns(m); err != nil {
		return nil, err
	}
	img, err := s.openRecorded(ctx, m.Image)
	if err != nil {
		return nil, nil
	}
	if err := s.awake(ctx, known, m.Image.Path, int(img.File().Fd())); err != nil {
		return nil, errors.Join(err, img.Close())
	}
	return img, nil
}
