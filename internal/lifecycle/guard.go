package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"dmloop/internal/advice"
	"dmloop/internal/fault"
	"dmloop/internal/guardrpc"
	"dmloop/internal/image"
	"dmloop/internal/observe"
	"dmloop/internal/record"
)

// Guard is the running watchdog as the use cases see it: guardrpc.Guard, or the guard
// itself when it finishes what a command left.
type Guard interface {
	Ensure(ctx context.Context) error
	Prepare(ctx context.Context, image *os.File, deny bool) (denies bool, err error)
	Add(ctx context.Context, name string) error
	Drop(ctx context.Context, name string) error
	Grow(ctx context.Context, name string) error
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
	s.guard.Guard = g
	return s
}

// watchdog is the running guard as one command sees it. One that does not answer in time is
// not asked again: each later question has the same error, so that the command waits once
// and not for every mapping.
type watchdog struct {
	Guard // nil where there is none
	log   *slog.Logger
	hung  error // why it did not answer in time; nil while it does
	held  bool  // an open of an image has waited for it in vain
}

// watched lists what a running guard watches; nothing when none runs.
func (w *watchdog) watched(ctx context.Context) map[string]bool {
	if w.Guard == nil || w.hung != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, guardPatience)
	defer cancel()
	names, err := w.Watched(ctx)
	if err != nil {
		w.note(err)
		w.log.Debug("no answer from a guard", "error", err)
		return nil
	}
	return names
}

// drop makes the guard forget a mapping. One that does not answer looks for itself
// when it goes on: the device is gone.
func (w *watchdog) drop(ctx context.Context, name string) error {
	if w.Guard == nil || w.hung != nil {
		return w.hung
	}
	ctx, cancel := context.WithTimeout(ctx, guardPatience)
	defer cancel()
	err := w.Drop(ctx, name)
	w.note(err)
	return refusal(err)
}

// note remembers a guard that does not answer, so that a command waits for it
// once and not for every mapping.
func (w *watchdog) note(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		w.hung = err
	}
}

// record asks the guard for the record of the device with this uuid.
func (w *watchdog) record(ctx context.Context, uuid string) (m record.Record, known bool) {
	name, ok := record.NameInUUID(uuid)
	if !ok || w.Guard == nil || w.hung != nil {
		return m, false
	}
	ctx, cancel := context.WithTimeout(ctx, guardPatience)
	defer cancel()
	m, err := w.Record(ctx, name)
	w.note(err)
	return m, err == nil && m.UUID == uuid
}

// image returns the guard's own descriptor of an inode, or nil when no guard watches it.
func (w *watchdog) image(ctx context.Context, want record.Image) (*os.File, error) {
	if w.Guard == nil {
		return nil, nil
	}
	var f *os.File
	err := w.hung
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, guardPatience)
		defer cancel()
		f, err = w.OpenImage(ctx, want)
		err = refusal(err)
		w.note(err)
	}
	switch {
	case errors.Is(err, guardrpc.ErrNotWatched):
		return nil, nil
	case err != nil:
		return nil, &fault.Error{Class: fault.Failed, Subject: want.Path, Message: "the guard does not hand out the image", Err: err,
			Remedy: advice.KillGuard}
	}
	return f, nil
}

// open is observe.Open beside a guard that may hang. Whether it denies opens cannot be
// asked: then the kernel has every open wait for it, and nothing but the end of this
// process ends that.
func (w *watchdog) open(want record.Image, byPath func(*image.Found) (*image.Image, error), patience time.Duration) (*image.Image, error) {
	if w.hung == nil {
		return observe.Open(want, byPath)
	}
	refused := &fault.Error{Class: fault.Failed, Subject: want.Path, Message: "opens of the image wait for a guard that does not answer", Err: w.hung,
		Remedy: advice.KillGuard}
	if w.held {
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
	case <-time.After(patience):
		w.held = true
		go func() {
			if late := <-done; late.img != nil {
				late.img.Close()
			}
		}()
		return nil, refused
	}
}
