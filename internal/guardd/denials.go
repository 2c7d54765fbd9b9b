package guardd

import (
	"time"

	"dmloop/guard"
	"dmloop/internal/watch"
)

// sumPause is the time between the sums of denials that were not logged one by one.
const sumPause = 10 * time.Second

// logDenials writes what the gate refused, until the gate is closed.
func (d *Daemon) logDenials(told <-chan watch.Denial, untold func() []watch.Denial) {
	ticker := time.NewTicker(sumPause)
	defer ticker.Stop()
	sum := func() {
		for _, denial := range untold() {
			d.logDenial("more opens of a pinned image were denied", denial)
		}
	}
	defer sum()
	for {
		select {
		case denial, open := <-told:
			if !open {
				return
			}
			d.logDenial("an open of a pinned image was denied", denial)
		case <-ticker.C:
			sum()
		}
	}
}

func (d *Daemon) logDenial(message string, denial watch.Denial) {
	d.Log.Warn(message, "mapping", d.mappingOf(denial.File), "times", denial.Times, "uid", denial.UID, "pid", denial.PID,
		"program", denial.Program, "device", denial.File.Device().String(), "inode", denial.File.Inode)
}

// mappingOf names the mapping of an image, or none while the image is only prepared.
func (d *Daemon) mappingOf(file guard.FileID) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, m := range d.mappings {
		if m.id == file {
			return name
		}
	}
	return ""
}

// deniedOf returns how many opens of the mapping's image were refused.
func (d *Daemon) deniedOf(m *mapping) uint64 {
	if d.gate == nil || m.image == nil {
		return 0
	}
	return d.gate.Denied(m.id)
}
