package lifecycle

import (
	"context"
	"errors"
	"os"
	"time"

	"dmloop/internal/manifest"
)

// Guard is the running watchdog as the use cases see it; cmd wires the client of
// the guard's socket to it.
type Guard interface {
	// Ensure starts a guard when none runs.
	Ensure(ctx context.Context) error
	// Prepare marks the image before it is pinned, and says whether opens by others
	// will be denied from then on.
	Prepare(ctx context.Context, image *os.File) (denies bool, err error)
	// Add returns once the guard watches the mapping and has found it as recorded.
	Add(ctx context.Context, name string) error
	// Drop makes the guard forget the mapping. A guard that does not run forgot it.
	Drop(ctx context.Context, name string) error
	// Record returns the record of a watched mapping as the guard remembers it, without
	// layout and table; an error of any kind when it does not.
	Record(ctx context.Context, name string) (manifest.Manifest, error)
	// Watched lists the mappings that a running guard watches.
	Watched(ctx context.Context) (map[string]bool, error)
	// OpenImage returns a descriptor, open for reading, of an image that the guard
	// watches: of the inode that want names, wherever its path leads to by now. For any
	// other, and without a running guard, it returns ErrNotWatched.
	OpenImage(ctx context.Context, want manifest.Image) (*os.File, error)
}

// ErrNotWatched says that no guard watches the image.
var ErrNotWatched = errors.New("no guard watches the image")

// guardPatience bounds how long a command waits for a guard that does not answer.
const guardPatience = 5 * time.Second

// WithGuard makes the system use g.
func (s *System) WithGuard(g Guard) *System {
	s.guard = g
	return s
}

// watched lists what a running guard watches; nothing when none runs.
func (s *System) watched(ctx context.Context) map[string]bool {
	if s.guard == nil || s.hung != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, guardPatience)
	defer cancel()
	names, err := s.guard.Watched(ctx)
	if err != nil {
		s.noteHung(err)
		s.log.Debug("no answer from a guard", "error", err)
		return nil
	}
	return names
}

// dropWatch has the guard forget a mapping. One that does not answer looks for itself
// when it goes on: the device is gone.
func (s *System) dropWatch(ctx context.Context, name string) error {
	if s.guard == nil || s.hung != nil {
		return s.hung
	}
	ctx, cancel := context.WithTimeout(ctx, guardPatience)
	defer cancel()
	err := s.guard.Drop(ctx, name)
	s.noteHung(err)
	return err
}

// noteHung remembers a guard that does not answer, so that a command waits for it
// once and not for every mapping.
func (s *System) noteHung(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		s.hung = err
	}
}

// prepareGuard starts the guard, and has the image marked before it is pinned: the
// mark goes by path, and a mark after the lease would leave a gap.
func (j *mapJob) prepareGuard(ctx context.Context) error {
	if j.options.NoGuard || j.options.GuardLater {
		return nil
	}
	if j.guard == nil {
		return &Error{Class: Usage, Subject: j.m.Name, Message: "no guard can be started here", Hint: "map with --no-guard"}
	}
	if err := j.guard.Ensure(ctx); err != nil {
		return &Error{Class: ClassOf(err), Subject: j.m.Name, Message: "no guard could be started", Err: err,
			Hint: "see dmloop guard --help; --no-guard does without where the grade is kernel"}
	}
	denies, err := j.guard.Prepare(ctx, j.img.File())
	j.denies = denies
	return err
}

// watch has the guard confirm that it watches the live mapping.
func (j *mapJob) watch(ctx context.Context) error {
	if j.options.NoGuard || j.options.GuardLater {
		return nil
	}
	// The guard reads the record, whose state stays Mapping until the guard has
	// confirmed, so that a killed run is undone.
	return j.guard.Add(ctx, j.m.Name)
}
