package guardd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"dmloop/internal/gate"
	"dmloop/internal/observe"
	"dmloop/internal/ration"
	"dmloop/internal/record"
)

// openKernelGate puts the gate in the kernel in force, where there can be one, so that it is
// there before any mapping needs it, and tells from then on what it refused.
func (d *Daemon) openKernelGate() {
	err := gate.Load()
	if err = errors.Join(err, gate.Enter()); err != nil {
		d.Log.Info("the gate in the kernel is not in force", "why", err)
		return
	}
	d.Log.Info("the gate in the kernel is in force")
}

// closeKernelGate takes the gate away unless it guards something.
func (d *Daemon) closeKernelGate() {
	g, err := gate.Open()
	if err == nil {
		err = errors.Join(g.Unload(), g.Close())
	}
	if err = errors.Join(err, gate.Leave()); err != nil && !errors.Is(err, gate.ErrNotLoaded) {
		d.Log.Warn("the gate in the kernel stays", "error", err)
	}
}

// gateAgain makes the gate guard the mapping that it does not guard any more: somebody took
// it away, or the machine was booted since.
func (a *actions) gateAgain() error {
	if err := errors.Join(gate.Load(), gate.Again()); err != nil {
		return fmt.Errorf("putting the gate in force again: %w", err)
	}
	if err := a.d.gatePinning(a.m.record, a.m.growing() > 0); err != nil {
		return fmt.Errorf("putting the gate in force again: %w", err)
	}
	a.d.Log.Warn("the gate is in force again", "mapping", a.m.record.Name)
	return nil
}

// gatePinning makes the gate guard the mapping, also while its image has no pins for a moment.
func (d *Daemon) gatePinning(rec record.Record, pinning bool) error {
	e, err := observe.Guarded(d.Mapper, d.Sysfs, rec)
	if err != nil {
		return err
	}
	e.Pinning = pinning
	g, err := gate.Open()
	if err != nil {
		return err
	}
	return errors.Join(g.Put(e), g.Close())
}

// followPause is how long the guard waits until it looks for another gate, or for one at all.
const followPause = 2 * time.Second

// Of refusals, these many in a row are logged one by one and from then on one each while.
const (
	refusalBurst = 20
	refusalPause = 5 * time.Second
)

// followKernelGate logs and counts what the gate refuses, until ctx ends.
func (d *Daemon) followKernelGate(ctx context.Context) {
	r := ration.Ration{Burst: refusalBurst, Every: refusalPause}
	unlogged := 0
	for ctx.Err() == nil {
		g, err := gate.Open()
		if err == nil {
			again := gate.Again() // somebody may have put it in force after this process began
			err = g.Follow(ctx, func(denial gate.Denial) {
				d.counts.refused(denial.What.String())
				if !r.Take(time.Now()) {
					unlogged++
					return
				}
				message := "the gate refused a change below a mapping"
				if denial.What == gate.OpenFile {
					message = "an open of a pinned image was denied"
				}
				d.Log.Warn(message, "what", denial.What.String(), "mapping", d.mappingWith(denial.Mapping), "pid", denial.PID, "program", denial.Program,
					"uid", denial.UID, "device", denial.Device.String(), "inode", denial.Inode, "not_logged_before", unlogged)
				unlogged = 0
			})
			err = errors.Join(again, err, g.Close())
		}
		if err != nil && !errors.Is(err, gate.ErrNotLoaded) && ctx.Err() == nil {
			d.Log.Warn("refusals by the gate are not reported", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(followPause):
		}
	}
}

// mappingWith names the watched mapping with this number.
func (d *Daemon) mappingWith(id gate.UUID) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, m := range d.mappings {
		if e, err := observe.GuardedImage(m.record); err == nil && e.Mapping == id {
			return name
		}
	}
	return ""
}
