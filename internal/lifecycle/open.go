package lifecycle

import (
	"context"
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/gate"
	"dmloop/internal/image"
	"dmloop/internal/observe"
	"dmloop/internal/record"
)

// find looks the path of an image up. What a command does with it is done with the file
// that was found, whatever the path leads to by then: a path is looked up once.
func find(path string) (*image.Found, error) {
	found, err := image.Find(path)
	if err != nil {
		return nil, openError(path, err)
	}
	return found, nil
}

// openImage looks the image at path up and opens it.
func (s *System) openImage(ctx context.Context, path string) (*image.Image, error) {
	found, err := find(path)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	return s.open(ctx, found)
}

// open opens a file that was found. Of an image that the guard watches it is the
// guard's own descriptor: the guard denies opens to everybody, and where it cannot,
// an open of ours would look like a stranger's.
func (s *System) open(ctx context.Context, found *image.Found) (*image.Image, error) {
	if img, err := s.openWatched(ctx, found); err != nil || img != nil {
		return img, err
	}
	s.passGate()
	return openUnwatched(found)
}

// passGate has this process pass a gate that was put in force since the command began.
func (s *System) passGate() {
	if err := gate.Again(); err != nil {
		s.log.Debug("the gate does not let this process pass", "error", err)
	}
}

func openUnwatched(found *image.Found) (*image.Image, error) {
	img, err := found.Open()
	if err == nil {
		return img, nil
	}
	return nil, openError(found.Given(), err)
}

// openError says why a file cannot be opened.
func openError(path string, err error) error {
	var p *extents.Refusal
	switch {
	case errors.As(err, &p):
		return fault.Refuse(path, p.Problems)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return &fault.Error{Class: fault.NotFound, Subject: path, Message: "no such file"}
	case errors.Is(err, fs.ErrPermission) && unix.Geteuid() == 0:
		return &fault.Error{Class: fault.NotPermitted, Subject: path, Message: "root is not allowed to open it, most likely by a guard that this command does not reach",
			Remedy: advice.ReachGuard}
	case errors.Is(err, fs.ErrPermission):
		return &fault.Error{Class: fault.NotPermitted, Subject: path, Message: "not permitted to open it", Remedy: fault.Permission(fault.CapFiles)}
	}
	var plain *fs.PathError
	if errors.As(err, &plain) {
		err = plain.Err // the path stands before the message
	}
	return fault.Wrap(path, "it cannot be opened", err)
}

// openWatched returns nil when no guard watches the file. A guard that is there and
// does not answer may hold up every open of the image, so that is an error.
func (s *System) openWatched(ctx context.Context, found *image.Found) (*image.Image, error) {
	id := found.Identity()
	f, err := s.guard.image(ctx, record.Image{Path: found.Path(), FileID: id.FileID})
	if err != nil {
		return nil, fault.Wrap(found.Given(), "", err)
	}
	if f == nil {
		return nil, nil
	}
	return image.Adopt(f)
}

// openRecorded opens the image of a record, wherever it is by now. It returns
// observe.ErrImageGone when the file system says that the inode is gone.
func (s *System) openRecorded(ctx context.Context, want record.Image) (*image.Image, error) {
	f, err := s.guard.image(ctx, want)
	if f != nil {
		img, err := image.Adopt(f)
		if err != nil {
			return nil, err
		}
		if observe.Is(img, want) {
			return img, nil
		}
		img.Close()
	}
	s.passGate()
	byPath := func(found *image.Found) (*image.Image, error) {
		if err != nil {
			return nil, err
		}
		return openUnwatched(found)
	}
	return s.guard.open(want, byPath, s.patience.held)
}

// openToChange is openRecorded for what changes something of the image, which its file
// system has to take.
func (s *System) openToChange(ctx context.Context, known sleepers, m record.Record) (*image.Image, error) {
	want := m.Image
	if err := s.hostRuns(m); err != nil {
		return nil, err
	}
	img, err := s.openRecorded(ctx, want)
	if err != nil {
		return nil, err
	}
	if err := s.awake(ctx, known, want.Path, int(img.File().Fd())); err != nil {
		return nil, errors.Join(err, img.Close())
	}
	return img, nil
}

// hostRuns refuses, as Busy, a mapping whose host device is suspended, before a path is
// walked there: a folder that is not in memory is read from the disk, and nothing ends that
// wait. Where the number is another device's by now the file system is asked when it is open.
func (s *System) hostRuns(m record.Record) error {
	conn, err := s.mapper()
	if err != nil {
		return nil // the next steps say so
	}
	info, err := conn.Info(dm.ByDevice(m.Base.Device))
	if err != nil || info.UUID != m.Base.UUID || info.Name != m.Base.Name {
		return nil
	}
	if err := s.running(m.Image.Path, m.Base.Device); err != nil {
		return err
	}
	return nil
}
