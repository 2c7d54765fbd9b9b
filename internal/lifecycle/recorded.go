package lifecycle

import (
	"context"
	"errors"
	"time"

	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/observe"
	"dmloop/internal/record"
)

// openRecorded opens the image of a record, wherever it is by now. It returns
// observe.ErrImageGone when the file system says that the inode is no more.
func (s *System) openRecorded(ctx context.Context, want record.Image) (*image.Image, error) {
	f, err := s.askGuard(ctx, want)
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
	byPath := func(found *image.Found) (*image.Image, error) {
		if err != nil {
			return nil, err
		}
		return openUnwatched(found)
	}
	if s.hung == nil {
		return observe.Open(want, byPath)
	}
	return s.openHeld(want, byPath)
}

// openToChange is openRecorded for who is going to change something of the image, which
// its file system has to take.
func (s *System) openToChange(ctx context.Context, m record.Record) (*image.Image, error) {
	want := m.Image
	if err := s.hostRuns(m); err != nil {
		return nil, err
	}
	img, err := s.openRecorded(ctx, want)
	if err != nil {
		return nil, err
	}
	if err := s.awake(ctx, want.Path, int(img.File().Fd())); err != nil {
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

// openHeld is observe.Open where the guard hangs. Whether it denies opens cannot be
// asked: then the kernel has every open wait for it, and nothing but the end of this
// process ends that.
func (s *System) openHeld(want record.Image, byPath func(*image.Found) (*image.Image, error)) (*image.Image, error) {
	refused := &fault.Error{Class: fault.Failed, Subject: want.Path, Message: "opens of the image wait for a guard that does not answer", Err: s.hung,
		Remedy: advice.KillGuard}
	if s.held {
		return nil, refused
	}
	type opened struct {
		img *image.Image
		err error
	}
	done := make(chan opened, 1)
	go func() {
		img, err := observe.Open(want, byPath)
		done <- opened{img, err}
	}()
	select {
	case o := <-done:
		return o.img, o.err
	case <-time.After(s.patience.held):
		s.held = true
		go func() {
			if late := <-done; late.img != nil {
				late.img.Close()
			}
		}()
		return nil, refused
	}
}
