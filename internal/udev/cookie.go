package udev

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/ioctl"
)

const (
	// primarySource (DM_UDEV_PRIMARY_SOURCE_FLAG) tells the rules that the event
	// is genuine; without it they distrust the device later on.
	primarySource = 0x40 << 16
	// cookieMagic (DM_COOKIE_MAGIC) is the high half of every cookie's key.
	cookieMagic = 0x0d4d << 16
	// waitStep bounds how long a cancelled context goes unnoticed.
	waitStep = 200 * time.Millisecond
)

// Flags tell udev's rules what to do about a device. They travel in the event number
// beside the cookie.
type Flags uint32

// The flags that dmloop uses.
const (
	// LowPriority (DM_UDEV_LOW_PRIORITY_FLAG) lets the links of /dev/disk lead to any
	// other device with the same content.
	LowPriority Flags = 0x0010 << 16
	// UseContent (DM_SUBSYSTEM_UDEV_FLAG0) is read by 61-dmloop.rules: what lies in the
	// device as a part of something bigger may be put together.
	UseContent Flags = 0x0100 << 16
)

// Timeout is how long Wait waits for udev. Udevd itself gives up on an event after
// 180 seconds, and a worker that was killed never answers.
const Timeout = 30 * time.Second

// ErrTimeout means that udev did not answer in time. The device itself is fine.
var ErrTimeout = errors.New("udev did not answer in time")

// Transaction waits for udev to handle the uevents of one or several requests of
// the same kind. Begin one, call Add before each request, Done or Fail after one
// that generated no uevent, and Wait once at the end, whatever happened before.
// Where udev cannot be waited for, it only supplies the event numbers.
type Transaction struct {
	log       *slog.Logger
	semaphore ioctl.Semaphore
	base      uint32 // low half of the event numbers; 0 when nothing is waited for
}

// Begin starts a transaction on this machine. log may be nil.
func Begin(log *slog.Logger) (*Transaction, error) { return Local().Begin(log) }

// Begin starts a transaction. Where udev does not run or the kernel has no
// semaphores to spare, the transaction waits for nothing. It returns an error only
// when a semaphore was made and cannot be used.
func (h Host) Begin(log *slog.Logger) (*Transaction, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t := &Transaction{log: log}
	if running, why := h.Running(); !running {
		log.Debug("not waiting for udev: " + why)
		return t, nil
	}
	base, semaphore, err := newCookie()
	if err != nil {
		log.Warn("not waiting for udev: there is no free cookie", "error", err)
		return t, nil
	}
	if err := semaphore.Set(1); err != nil {
		return nil, errors.Join(fmt.Errorf("udev cookie: %w", err), semaphore.Remove())
	}
	t.semaphore, t.base = semaphore, base
	log.Debug("udev cookie made", "key", fmt.Sprintf("%#x", cookieMagic|base))
	return t, nil
}

// newCookie finds a free key; its low half is never 0.
func newCookie() (uint32, ioctl.Semaphore, error) {
	for range 100 {
		base := rand.Uint32N(0xffff) + 1
		semaphore, err := ioctl.CreateSemaphore(cookieMagic | base)
		if err == nil {
			return base, semaphore, nil
		}
		if !errors.Is(err, unix.EEXIST) {
			return 0, 0, err
		}
	}
	return 0, 0, fmt.Errorf("a hundred random keys were all taken: %w", unix.EEXIST)
}

// Add counts one request that will generate a uevent and returns the event number
// to make it with.
func (t *Transaction) Add() uint32 { return t.AddWith(0) }

// AddWith is Add for an event that tells udev's rules something about the device.
func (t *Transaction) AddWith(flags Flags) uint32 {
	number := primarySource | uint32(flags)
	if t.base == 0 {
		return number
	}
	if err := t.semaphore.Add(1); err != nil {
		t.log.Warn("udev cookie cannot be counted up; not waiting for this event", "error", err)
		return number
	}
	return number | t.base
}

// Done takes one request back that succeeded and generated no uevent.
func (t *Transaction) Done() {
	if err := t.Fail(); err != nil {
		t.log.Warn("udev cookie cannot be counted down", "error", err)
	}
}

// Fail takes one request back that failed, and so generated no uevent.
func (t *Transaction) Fail() error {
	if t.base == 0 {
		return nil
	}
	err := t.semaphore.Add(-1)
	if errors.Is(err, unix.EIDRM) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EAGAIN) {
		return nil // somebody ran dmsetup udevcomplete or udevcomplete_all
	}
	return err
}

// Wait waits up to Timeout until udev has handled every counted uevent, and ends
// the transaction.
func (t *Transaction) Wait() error {
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	return t.WaitContext(ctx)
}

// WaitContext waits until udev has handled every counted uevent or ctx ends, and
// ends the transaction: the semaphore is removed in every case. A ctx that ended is
// ErrTimeout.
func (t *Transaction) WaitContext(ctx context.Context) error {
	if t.base == 0 {
		return nil
	}
	err := t.waitZero(ctx)
	if gone := t.semaphore.Remove(); gone != nil && !errors.Is(gone, unix.EIDRM) && !errors.Is(gone, unix.EINVAL) {
		err = errors.Join(err, fmt.Errorf("removing the udev cookie: %w", gone))
	}
	t.base = 0
	return err
}

func (t *Transaction) waitZero(ctx context.Context) error {
	err := t.semaphore.Add(-1) // the 1 that it began with
	for err == nil {
		err = t.semaphore.WaitZero(waitStep)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
		case ctx.Err() != nil:
			return fmt.Errorf("%w (%w)", ErrTimeout, ctx.Err())
		default:
			err = nil
		}
	}
	if errors.Is(err, unix.EIDRM) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EAGAIN) {
		return nil // somebody ran dmsetup udevcomplete or udevcomplete_all
	}
	return fmt.Errorf("waiting for udev: %w", err)
}
