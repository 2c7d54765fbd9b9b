package guardd

import (
	"errors"
	"time"

	"dmloop/dmtable"
	"dmloop/internal/guardrpc"
	"dmloop/internal/watch"
)

// openSources begins to listen to the kernel. Only the gate's absence matters for
// what may be mapped; without any other source the timer finds everything, later.
func (d *Daemon) openSources() (stop func()) {
	var closers []func() error
	stop = func() {
		for _, c := range closers {
			c()
		}
		d.running.Wait()
	}
	switch gate, err := watch.NewGate(); {
	case err == nil:
		d.gate, d.denies = gate, guardrpc.Yes
		closers = append(closers, gate.Close)
		d.running.Go(func() { d.logDenials(gate.Denials(), gate.Untold) })
	case errors.Is(err, watch.ErrNoGate):
		d.denies, d.gateWhy = guardrpc.No, err.Error()
	default:
		d.denies, d.gateWhy = guardrpc.Unknown, err.Error()
	}
	if d.gate == nil {
		d.Log.Warn("opens of images by others cannot be denied", "why", d.gateWhy)
	}
	if files, err := watch.NewFiles(d); err == nil {
		d.files = files
		closers = append(closers, files.Close)
	} else {
		d.Log.Warn("images are watched by the timer only", "error", err)
	}
	if uevents, err := watch.NewUevents(d); err == nil {
		closers = append(closers, uevents.Close)
	} else {
		d.Log.Warn("devices are watched by the timer only", "error", err)
	}
	swaps, err := watch.NewSwaps(d.swapsChanged)
	switch {
	case err == nil:
		closers = append(closers, swaps.Close)
	case !errors.Is(err, watch.ErrNoSwap):
		d.Log.Warn("swap areas are watched by the timer only", "error", err)
	}
	return stop
}

// Touched implements watch.FileHints.
func (d *Daemon) Touched(name, event string) { d.hint(name, "file: "+event) }

// Lost implements watch.FileHints.
func (d *Daemon) Lost(name, why string) {
	d.logLoss("a watch was lost, everything is checked", "mapping", name, "why", why)
	if name == "" {
		d.hintAll(why)
		return
	}
	d.hint(name, why)
}

// Device implements watch.DeviceHints.
func (d *Daemon) Device(dev dmtable.Device, action string) {
	d.hintDevice(dev, "uevent: "+action+" "+dev.String())
}

// hintDevice has the mappings checked that a device concerns.
func (d *Daemon) hintDevice(dev dmtable.Device, why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.mappings {
		if m.devices[dev] {
			m.watch.Hint(why)
		}
	}
}

// LostDevices implements watch.DeviceHints.
func (d *Daemon) LostDevices(why string) {
	d.logLoss("messages about devices were lost, everything is checked", "why", why)
	d.hintAll(why)
}

// Of losses, lossBurst in a row are logged and from then on one each lossPause: who makes
// messages faster than they are read must not fill the log.
const (
	lossBurst = 10
	lossPause = 10 * time.Second
)

func (d *Daemon) logLoss(message string, args ...any) {
	d.mu.Lock()
	now := d.losses.Take(time.Now())
	unlogged := d.unlogged
	if d.unlogged++; now {
		d.unlogged = 0
	}
	d.mu.Unlock()
	if now {
		d.Log.Warn(message, append(args, "not_logged_before", unlogged)...)
	}
}

// swapsChanged has the sealed mappings checked: somebody ran swapon or swapoff.
func (d *Daemon) swapsChanged() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.mappings {
		if m.record.Sealed {
			m.watch.Hint("the list of swap areas changed")
		}
	}
}

func (d *Daemon) hint(name, why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.mappings[name]; m != nil {
		m.watch.Hint(why)
	}
}

func (d *Daemon) hintAll(why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.mappings {
		m.watch.Hint(why)
	}
}
