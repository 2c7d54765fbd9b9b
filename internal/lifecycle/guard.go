package lifecycle

import (
	"context"
	"errors"
	"os"
	"time"

	"dmloop/internal/advice"
	"dmloop/internal/fault"
	"dmloop/internal/guardrpc"
	"dmloop/internal/record"
)

// Guard is the running watchdog as the use cases see it: guardrpc.Guard, or the guard
// itself when it finishes what a command left.
type Guard interface {
	Ensure(ctx context.Context) error
	Prepare(ctx context.Context, image *os.File) (denies bool, err error)
	Add(ctx context.Context, name string) error
	Drop(ctx context.Context, name string) error
	Record(ctx context.Context, name string) (record.Record, error)
	Watched(ctx context.Context) (map[string]bool, error)
	OpenImage(ctx context.Context, want record.Image) (*os.File, error)
	Close()
}

var _ Guard = (*guardrpc.Guard)(nil)

// refusal gives what a guard refused the class that decides the exit code. Any other
// error is returned as it is.
func refusal(err error) error {
	var refused *guardrpc.Error
	if !errors.As(err, &refused) {
		return err
	}
	classes := map[guardrpc.ErrorKind]fault.Class{
		guardrpc.KindNotFound: fault.NotFound, guardrpc.KindDifferent: fault.StaleMapping,
		guardrpc.KindBusy: fault.Busy, guardrpc.KindLacks: fault.KernelLacks, guardrpc.KindFailed: fault.Failed,
	}
	return &fault.Error{Class: classes[refused.Kind], Message: "the guard refuses: " + refused.Message}
}

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
	return refusal(err)
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
		return &fault.Error{Class: fault.Usage, Subject: j.m.Name, Message: "no guard can be started here", Remedy: advice.MapWithoutGuard}
	}
	if err := j.guard.Ensure(ctx); err != nil {
		return &fault.Error{Class: fault.ClassOf(err), Subject: j.m.Name, Message: "no guard could be started", Err: err,
			Remedy: advice.SeeGuardHelp}
	}
	denies, err := j.guard.Prepare(ctx, j.img.File())
	j.denies = denies
	return refusal(err)
}

// watch has the guard confirm that it watches the live mapping.
func (j *mapJob) watch(ctx context.Context) error {
	if j.options.NoGuard || j.options.GuardLater {
		return nil
	}
	// The guard reads the record, whose state stays Mapping until the guard has
	// confirmed, so that a killed run is undone.
	return refusal(j.guard.Add(ctx, j.m.Name))
}
