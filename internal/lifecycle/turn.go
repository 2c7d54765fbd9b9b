package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/record"
)

// turn is a command's hold on the state directory, which it has alone until it ends.
type turn struct {
	store    *record.Store
	img      *image.Image    // of a command about one image; else nil
	finished []record.Record // what killed commands left half-way, and this one has finished
	asleep   sleepers
	unlock   func()
}

func (t *turn) end() {
	if t.img != nil {
		t.img.Close()
	}
	t.unlock()
	t.store.Close()
}

// lock opens the state directory and takes its lock, then finishes or undoes what killed
// commands left half-way. The caller ends the turn.
func (s *System) lock(ctx context.Context) (*turn, error) {
	store, err := s.openStore(true)
	if err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, s.patience.lock)
	defer cancel()
	unlock, err := store.Lock(wait)
	if err != nil {
		store.Close()
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, s.lockHeld(err)
		}
		return nil, err
	}
	s.passGate() // who had the lock may have put the gate in force
	t := &turn{store: store, asleep: sleepers{}, unlock: unlock}
	if t.finished, err = s.recover(ctx, t); err != nil {
		t.end()
		return nil, err
	}
	s.sweepGate(ctx, t)
	return t, nil
}

// lockHeld says who has the lock.
func (s *System) lockHeld(cause error) error {
	message, remedy := "another dmloop command", extents.Remedy{}
	for _, pid := range image.LockHolders(filepath.Join(s.stateDir, record.LockName)) {
		message += fmt.Sprintf(" (process %d)", pid)
		remedy = advice.SeeLockHolder.At(extents.Bytes(pid), 0)
	}
	return &fault.Error{Class: fault.Busy, Message: message + " holds the lock in " + s.stateDir, Remedy: remedy, Err: cause}
}

// askAgain is how long a command may have waited for the lock until what was asked before
// is old.
const askAgain = 100 * time.Millisecond

// lockImage refuses a file whose file system takes no changes, takes the lock, refuses an
// image that is mapped, and opens it. It is opened with the lock held, so that the lease of
// another run does not see it; no such open waits for a lease of somebody else. The turn
// has the image.
func (s *System) lockImage(ctx context.Context, found *image.Found) (*turn, error) {
	path := found.Given()
	if err := s.awake(ctx, sleepers{}, path, found.Handle()); err != nil {
		return nil, err
	}
	start := time.Now()
	t, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	if err = s.imageFree(t.store, found); err == nil && time.Since(start) > askAgain {
		err = s.awake(ctx, t.asleep, path, found.Handle())
	}
	if err == nil {
		t.img, err = s.open(ctx, found)
	}
	if err != nil {
		t.end()
		return nil, err
	}
	return t, nil
}
