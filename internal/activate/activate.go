// Package activate brings up and takes down what dmlooptab lists.
package activate

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"dmloop/guard"
	"dmloop/internal/blockdev"
	"dmloop/internal/fault"
	"dmloop/internal/lifecycle"
	"dmloop/internal/survey"
	"dmloop/internal/tab"
)

// System is what activation needs of the use cases; *lifecycle.System is one.
type System interface {
	EnsureShim(ctx context.Context, path, name string) (device string, there bool, err error)
	EnsureMapped(ctx context.Context, path string, o lifecycle.MapOptions) (st lifecycle.Status, there bool, err error)
	RemoveShim(ctx context.Context, name string) error
	Unmap(ctx context.Context, target string, o lifecycle.UnmapOptions) error
	Close() error
}

// Runner activates entries. Open makes a system for one entry, since several are
// worked on at the same time.
type Runner struct {
	Open    func() System
	Devices blockdev.Finder
	Log     *slog.Logger
	Jobs    int           // entries at a time
	Wait    time.Duration // for the devices of shims to appear
	Slow    time.Duration // after so long it is said what an entry is at; 0 is never
}

// Result is what became of an entry.
type Result struct {
	Entry  tab.Entry
	Device string // when it is up
	There  bool   // it was up already
	Err    error
	Took   time.Duration
}

// Activate brings the entries up: first all shims, since images may lie on the file
// systems above them, then all images. Results have the order of the entries. One
// that fails keeps no other from its turn.
func (r Runner) Activate(ctx context.Context, entries []tab.Entry) []Result {
	return r.both(ctx, entries, tab.Shim, tab.Image, r.up)
}

// Deactivate takes the entries down in reverse: first images, then shims. What is
// not up is not an error.
func (r Runner) Deactivate(ctx context.Context, entries []tab.Entry) []Result {
	return r.both(ctx, entries, tab.Image, tab.Shim, r.down)
}

// both runs do for the entries of one kind and then for those of the other.
func (r Runner) both(ctx context.Context, entries []tab.Entry, first, second tab.Kind, do func(context.Context, System, tab.Entry) Result) []Result {
	results := make([]Result, len(entries))
	for _, kind := range []tab.Kind{first, second} {
		var all sync.WaitGroup
		slots := make(chan struct{}, max(1, r.Jobs))
		for i, e := range entries {
			if e.Kind != kind {
				continue
			}
			all.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				results[i] = r.one(ctx, e, do)
			})
		}
		all.Wait()
	}
	return results
}

func (r Runner) one(ctx context.Context, e tab.Entry, do func(context.Context, System, tab.Entry) Result) Result {
	if err := ctx.Err(); err != nil {
		return Result{Entry: e, Err: err}
	}
	start := time.Now()
	if r.Slow > 0 && e.Kind == tab.Image {
		say := time.AfterFunc(r.Slow, func() {
			r.Log.Log(ctx, fault.LevelNote, "still at work: an image is checked from beginning to end before its device appears, and others may come first", "name", e.Label, "image", e.Source)
		})
		defer say.Stop()
	}
	sys := r.Open()
	defer sys.Close()
	res := do(ctx, sys, e)
	res.Entry, res.Took = e, time.Since(start)
	r.Log.Debug("entry done", "name", e.Label, "there", res.There, "took", res.Took, "error", res.Err)
	return res
}

func (r Runner) up(ctx context.Context, sys System, e tab.Entry) Result {
	if e.Kind == tab.Image {
		st, there, err := sys.EnsureMapped(ctx, e.Source, Options(e))
		return Result{Device: st.Device, There: there, Err: err}
	}
	d, err := r.Devices.Await(ctx, e.Source, r.Wait)
	if errors.Is(err, blockdev.ErrNotFound) {
		return Result{Err: &fault.Error{Class: fault.NotFound, Subject: e.Label, Message: "the device " + e.Source + " is not there"}}
	}
	if err != nil {
		return Result{Err: &fault.Error{Class: fault.ClassOf(err), Subject: e.Label, Err: err}}
	}
	device, there, err := sys.EnsureShim(ctx, d.Path, e.Label)
	return Result{Device: device, There: there, Err: err}
}

func (r Runner) down(ctx context.Context, sys System, e tab.Entry) Result {
	if e.Kind == tab.Shim {
		return Result{Err: sys.RemoveShim(ctx, e.Label)}
	}
	err := sys.Unmap(ctx, e.Label, lifecycle.UnmapOptions{NameOnly: true})
	if fault.ClassOf(err) == fault.NotFound {
		err = nil
	}
	return Result{Err: err}
}

// Options turns an image line into the options of map.
func Options(e tab.Entry) lifecycle.MapOptions {
	return lifecycle.MapOptions{
		Options: survey.Options{
			Window:     survey.Window{Offset: e.Offset, Limit: e.SizeLimit},
			MaxExtents: e.MaxExtents,
			Unattended: true,
			Gate:       guard.Gate(e.Gate),
		},
		Name: e.Label, UUID: e.UUID, ReadOnly: e.ReadOnly, Pin: e.Pin, OnChange: e.OnChange, UdevRules: e.UdevRules,
		NoGuard: e.NoGuard, Unsafe: e.Unsafe, PartScan: e.PartScan,
	}
}
