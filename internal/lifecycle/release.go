package lifecycle

import (
	"context"
	"errors"
	"fmt"

	"dmloop/internal/dm"
	"dmloop/internal/image"
	"dmloop/internal/manifest"
	"dmloop/internal/pin"
)

// finish takes a mapping down to nothing: partitions, device, page cache, pins and
// then the record, in this order, whatever of it there is. It is unmap's second
// half, map's undo, and what recover does for a killed command. When a step fails
// the record stays, in state releasing with the reason. img may be nil.
func (s *System) finish(ctx context.Context, store *manifest.Store, m *manifest.Manifest, img *image.Image) error {
	err := s.takeDown(ctx, m, img)
	if err == nil {
		return store.Delete(m.Name)
	}
	m.State, m.Reason = manifest.Releasing, err.Error()
	return errors.Join(err, store.Save(*m))
}

func (s *System) takeDown(ctx context.Context, m *manifest.Manifest, img *image.Image) error {
	conn, err := s.mapper()
	if err != nil {
		return err
	}
	if err := s.removeParts(conn, m); err != nil {
		return err
	}
	gone, err := s.removeDevice(conn, m.Name, m.UUID)
	if err != nil {
		return err
	}
	if !gone {
		return errors.New("removal is pending until the last user closes the device")
	}
	if s.guard != nil {
		if err := s.guard.Drop(ctx, m.Name); err != nil {
			s.log.Warn("the guard was not told that the mapping is gone", "mapping", m.Name, "error", err)
		}
	}
	return s.releasePins(ctx, m, img)
}

// releasePins drops the file's page cache, so that it reads what the device wrote,
// and clears the pins that were set for this mapping.
func (s *System) releasePins(ctx context.Context, m *manifest.Manifest, img *image.Image) error {
	if img == nil {
		var err error
		if img, err = s.openRecorded(ctx, m.Image); err != nil {
			if errors.Is(err, errImageGone) {
				s.log.Warn("the image is gone, its pins with it", "mapping", m.Name, "image", m.Image.Path)
				return nil
			}
			return fmt.Errorf("the pins of %s are not released: %w", m.Image.Path, err)
		}
		defer img.Close()
	}
	cache, err := img.DropCache()
	if err != nil {
		return fmt.Errorf("dropping the page cache of %s: %w", m.Image.Path, err)
	}
	if cache.Cached > 0 {
		s.log.Warn("pages of the image stay in memory and may be older than what the device wrote: somebody has it mapped",
			"image", m.Image.Path, "pages", cache.Cached)
	}
	claim := func(on bool) error { return s.swapClaim(img, on) }
	if err := pin.UndoFor(img.File(), m.Image.Filesystem, m.Name, claim); err != nil {
		return fmt.Errorf("the pins of %s are not released: %w", m.Image.Path, err)
	}
	return nil
}

// errImageGone says that the recorded inode does not exist any more.
var errImageGone = errors.New("the image does not exist any more")

// openRecorded opens the image of a record and makes sure it is still the same inode.
func (s *System) openRecorded(ctx context.Context, want manifest.Image) (*image.Image, error) {
	img, err := s.openWatched(ctx, want.Path)
	if err != nil {
		return nil, err
	}
	id, err := img.Identity()
	if err != nil {
		img.Close()
		return nil, err
	}
	if !sameInode(want, id) {
		img.Close()
		return nil, fmt.Errorf("%s is another file now than the one that was mapped: put it back, or mount its file system there", want.Path)
	}
	return img, nil
}

// sameInode compares what a rename or remount does not change.
func sameInode(m manifest.Image, id image.Identity) bool {
	return m.Major == id.Major && m.Minor == id.Minor && m.Inode == id.Inode &&
		m.Generation == id.Generation && m.Birth == id.Birth
}

// recover finishes what killed commands left: the caller holds the lock, so a
// record in a half-way state belongs to nobody. What cannot be finished yet stays
// listed, and only a log line says so: it must not stop other work.
func (s *System) recover(ctx context.Context, store *manifest.Store) error {
	names, err := store.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		m, err := store.Load(name)
		if err != nil {
			s.log.Warn("a record cannot be read", "error", err)
			continue
		}
		if m.State != manifest.Mapping && m.State != manifest.Releasing {
			continue
		}
		if err := s.finish(ctx, store, &m, nil); err != nil {
			s.log.Warn("an earlier mapping is not released yet", "mapping", name, "error", err)
		}
	}
	return nil
}

// UnmapOptions are the choices of `dmloop unmap`.
type UnmapOptions struct {
	Deferred bool // remove the device when its last user closes it
	Force    bool // let the users' I/O fail and remove it
}

// Unmap removes the mapping called by name or image path. When it returns nil the
// device is gone, or, with Deferred, goes when it is closed.
func (s *System) Unmap(ctx context.Context, target string, o UnmapOptions) error {
	store, unlock, err := s.lockStore(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := s.find(store, target)
	if err != nil {
		return err
	}
	if m.State == manifest.Releasing {
		return s.stillReleasing(m, o)
	}
	conn, err := s.mapper()
	if err != nil {
		return err
	}
	if err := s.removable(conn, &m, o); err != nil {
		return err
	}
	before := m.State
	m.State, m.Reason = manifest.Releasing, ""
	if err := store.Save(m); err != nil {
		return err
	}
	err = s.finish(ctx, store, &m, nil)
	var busy *busyError
	switch {
	case errors.As(err, &busy):
		m.State, m.Reason = before, ""
		return errors.Join(s.busy(m, busy), store.Save(m))
	case err != nil && o.Deferred && s.removalPending(conn, m):
		return nil
	case err != nil:
		return &Error{Class: ClassOf(err), Subject: m.Name, Message: err.Error(),
			Hint: "the record stays; the next dmloop command tries again"}
	}
	return nil
}

// stillReleasing answers an unmap of a mapping that an earlier one could not
// finish; recover has just tried again.
func (s *System) stillReleasing(m manifest.Manifest, o UnmapOptions) error {
	if o.Deferred {
		return nil
	}
	return &Error{Class: Failure, Subject: m.Name, Message: m.Reason, Hint: "the record stays; the next dmloop command tries again"}
}

// find returns the record of a mapping by its name or by its image's path.
func (s *System) find(store *manifest.Store, target string) (manifest.Manifest, error) {
	if name, err := mangled("", target); err == nil {
		m, err := store.Load(name)
		if err == nil || !errors.Is(err, manifest.ErrNotFound) {
			return m, err
		}
	}
	if id, err := image.Stat(target); err == nil {
		m, err := findByImage(store, id)
		if err == nil || !errors.Is(err, manifest.ErrNotFound) {
			return m, err
		}
	}
	return manifest.Manifest{}, &Error{Class: NotFound, Subject: target, Message: "no such mapping", Hint: "see: dmloop list"}
}

// findByImage returns the record of the mapping of an inode.
func findByImage(store *manifest.Store, id image.Identity) (manifest.Manifest, error) {
	names, err := store.Names()
	if err != nil {
		return manifest.Manifest{}, err
	}
	for _, name := range names {
		m, err := store.Load(name)
		if errors.Is(err, manifest.ErrNotFound) {
			continue
		}
		if err != nil {
			return manifest.Manifest{}, err
		}
		if m.Image.Major == id.Major && m.Image.Minor == id.Minor && m.Image.Inode == id.Inode {
			return m, nil
		}
	}
	return manifest.Manifest{}, manifest.ErrNotFound
}

// removalPending reports whether the kernel removes the device at its last close.
func (s *System) removalPending(conn *dm.Conn, m manifest.Manifest) bool {
	info, err := conn.Info(dm.ByUUID(m.UUID))
	return err == nil && info.DeferredRemove
}
