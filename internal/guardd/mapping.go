package guardd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/dm"
	"dmloop/internal/guardrpc"
	"dmloop/internal/image"
	"dmloop/internal/observe"
	"dmloop/internal/record"
	"dmloop/internal/watch"
)

// mapping is one watched mapping.
type mapping struct {
	d       *Daemon
	record  record.Record
	devices map[dmtable.Device]bool // whose uevents concern it
	watch   *guard.Watch
	reader  *observe.Reader // of the watch's goroutine; nil until the image is open
	stop    context.CancelFunc
	done    chan struct{}

	saved record.Record // its record's head as saved last since it is watched; with Daemon.mu held

	// Set once, with Daemon.mu held.
	image  *image.Image
	id     guard.FileID
	marked bool
}

// begin watches a mapping and makes one full check. img may be nil: then the image
// is opened by its path, again and again, until that works or the watch runs out
// of patience. When the check finds the mapping different, what its policy says has
// been done, and the error says what was found.
func (d *Daemon) begin(ctx context.Context, m record.Record, img *image.Image) (*mapping, error) {
	mp := &mapping{d: d, record: m, devices: concerned(m), done: make(chan struct{})}
	if img != nil {
		if err := mp.attach(img); err != nil {
			return nil, errors.Join(err, img.Close())
		}
	}
	mp.watch = guard.NewWatch(observe.Expect(m), mp, &actions{d: d, m: mp}, d.budget)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	mp.stop = stop
	d.mu.Lock()
	d.mappings[m.Name] = mp
	d.mu.Unlock()
	report := mp.watch.First(ctx)
	go func() {
		defer close(mp.done)
		mp.watch.Run(running)
	}()
	switch worst := guard.Worst(report.Findings); {
	case worst == guard.Different && m.State != guard.Stale:
		return mp, guardrpc.Errorf(guardrpc.KindDifferent, "%s", report.Decision.Reason)
	case report.Checks == 0:
		return mp, ctx.Err()
	}
	return mp, nil
}

// attach begins to watch the open image.
func (m *mapping) attach(img *image.Image) error {
	id, err := watch.IDOf(img.File())
	if err != nil {
		return err
	}
	marked := m.denied() && m.d.mark(id, img.File())
	if m.d.files != nil {
		err := m.d.files.Watch(m.record.Name, img.File(), m.record.Image.Path)
		switch {
		case errors.Is(err, watch.ErrOpensUntold):
			m.d.Log.Info("whoever opens the image is noticed by what changes, or by the timer", "mapping", m.record.Name, "error", err)
		case err != nil:
			m.d.Log.Warn("the image is watched by the timer only", "mapping", m.record.Name, "error", err)
		}
	}
	reader := &observe.Reader{Mapper: m.d.Mapper, Image: img, Record: m.record, Leases: true, Leaving: m.leaving, Growing: m.growing, Stopped: m.hostStopped, Hosts: m.d.hosts, Sysfs: m.d.Sysfs}
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	m.image, m.id, m.marked, m.reader = img, id, marked, reader
	return nil
}

// denied reports whether the guard is to deny opens of the image: where the gate in the
// kernel does not, and the image was mapped so.
func (m *mapping) denied() bool { return m.record.Gate == "" || m.record.Gate == guard.GateFanotify }

// Quick implements guard.World.
func (m *mapping) Quick(ctx context.Context, fresh bool) guard.Observed {
	if m.reader == nil {
		img, err := observe.Open(m.record.Image, (*image.Found).Open)
		if err == nil {
			err = m.attach(img)
		}
		if errors.Is(err, observe.ErrImageGone) || errors.Is(err, observe.ErrSeemsGone) {
			return guard.Observed{Identity: guard.Read(m.gone(), nil)}
		}
		if err != nil {
			return guard.Observed{Identity: guard.Read(guard.Identity{}, fmt.Errorf("opening the image: %w", err))}
		}
	}
	seen := m.reader.Quick(ctx, fresh)
	if !seen.Own.Done { // there is nothing to be read of a mapping that leaves
		m.left()
	}
	return seen
}

// gone is the identity of an image that was deleted: its own, without a name.
func (m *mapping) gone() guard.Identity {
	id := observe.Expect(m.record).Identity
	id.Links = 0
	return id
}

// Full implements guard.World.
func (m *mapping) Full(ctx context.Context, quick guard.Observed) guard.Observed {
	if m.reader == nil {
		return quick
	}
	return m.reader.Full(ctx, quick)
}

// concerned lists the devices whose uevents are hints for m: the host device, the
// mapping's own, and those that its rows lie on.
func concerned(m record.Record) map[dmtable.Device]bool {
	devices := map[dmtable.Device]bool{m.Base.Device: true, m.Device: true}
	for _, row := range m.Table {
		if segment, err := row.Segment(); err == nil {
			devices[segment.Device] = true
		}
	}
	return devices
}

// leaving reports whether a command takes the mapping down: its record says so, or
// is gone.
func (m *mapping) leaving() bool {
	now, err := m.d.store.Head(m.record.Name)
	if errors.Is(err, record.ErrNotFound) {
		return true
	}
	return err == nil && (now.UUID != m.record.UUID || now.State == guard.Releasing || now.State == guard.Mapping)
}

// growing returns the size that a command gives the image now, as its record says, and 0
// without one.
func (m *mapping) growing() extents.Bytes {
	now, err := m.d.store.Head(m.record.Name)
	if err != nil || now.UUID != m.record.UUID || now.Growing == nil {
		return 0
	}
	return now.Growing.To
}

// left has the rest of a mapping released, whose device a command has taken down.
func (m *mapping) left() {
	if now, err := m.d.store.Head(m.record.Name); err == nil && now.State == guard.Releasing {
		m.d.releases.expect(m.record.Name)
	}
}

// hostStopped reports whether the image lies within another mapped image that was
// found different. The rows of both name the same devices, so what was done to the
// outer mapping, a suspension perhaps, has no effect on this one.
func (m *mapping) hostStopped() bool {
	base := m.record.Base
	if !strings.HasPrefix(base.UUID, record.UUIDPrefix) {
		return false
	}
	m.d.mu.Lock()
	outer := m.d.mappings[base.Name]
	m.d.mu.Unlock()
	if outer != nil && outer.record.UUID == base.UUID {
		return guard.Worst(outer.watch.Last().Findings) == guard.Different
	}
	now, err := m.d.store.Head(base.Name)
	return err == nil && now.UUID == base.UUID && (now.State.Broken() || now.State == guard.Suspended)
}

// forgetGone forgets the mappings of which neither record nor device is left, in case
// that the command which took them down could not say so: nobody else will.
func (d *Daemon) forgetGone() {
	recorded, err := d.store.Names()
	if err != nil {
		return // nothing is known to be gone
	}
	for _, name := range d.names() {
		if slices.Contains(recorded, name) || !d.gone(name) {
			continue
		}
		d.locks.with(name, func() {
			if d.gone(name) && d.forget(name) {
				d.Log.Info("no longer watched: it is gone", "mapping", name)
			}
		})
	}
}

// gone reports whether a watched mapping has neither record nor device.
func (d *Daemon) gone(name string) bool {
	asked, err := d.askUnrecorded(name)
	return asked && errors.Is(err, dm.ErrNotFound)
}

// askUnrecorded asks device-mapper for the device of a watched mapping that has no
// record. It asks about no other.
func (d *Daemon) askUnrecorded(name string) (asked bool, err error) {
	if _, err := d.store.Head(name); !errors.Is(err, record.ErrNotFound) {
		return false, nil
	}
	d.mu.Lock()
	m := d.mappings[name]
	d.mu.Unlock()
	if m == nil {
		return false, nil
	}
	_, err = d.Mapper.Info(dm.ByUUID(m.record.UUID))
	return true, err
}

// forget ends the watch of a mapping and gives back all that it held: afterwards
// the image is not open here and opens by others are not denied.
func (d *Daemon) forget(name string) bool {
	d.mu.Lock()
	m := d.mappings[name]
	delete(d.mappings, name)
	d.mu.Unlock()
	if m == nil {
		return false
	}
	m.stop()
	<-m.done
	d.budget.Forget(name)
	if d.files != nil {
		d.files.Forget(name)
	}
	if m.marked {
		d.unmark(m.id, m.image.File())
	}
	if m.reader != nil {
		if err := m.reader.Close(); err != nil {
			d.Log.Warn("ending the watch of an image", "mapping", name, "error", err)
		}
	}
	if m.image != nil {
		m.image.Close()
	}
	return true
}

// mark makes the gate deny opens of the file and reports whether it does. Each mark
// is undone by one unmark.
func (d *Daemon) mark(id guard.FileID, f *os.File) bool {
	if d.gate == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.marks[id] == 0 {
		if err := d.gate.Mark(f); err != nil {
			d.Log.Warn("opens of the image cannot be denied", "image", f.Name(), "error", err)
			return false
		}
	}
	d.marks[id]++
	return true
}

func (d *Daemon) unmark(id guard.FileID, f *os.File) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.marks[id]--; d.marks[id] > 0 {
		return
	}
	delete(d.marks, id)
	d.gate.Forget(id)
	if err := d.gate.Unmark(f); err != nil {
		d.Log.Warn("opens of the image stay denied until the guard ends", "image", f.Name(), "error", err)
	}
}

// adoptAll takes over the mappings that are there when the guard starts. It
// compares before it watches, and a mapping that cannot be watched stops nothing.
func (d *Daemon) adoptAll(ctx context.Context) {
	names, err := d.store.Names()
	if err != nil {
		d.Log.Error("the records of mappings cannot be listed", "error", err)
		return
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return
		}
		m, err := d.store.Load(name)
		if err != nil {
			d.Log.Error("a record cannot be read, its mapping is not watched", "mapping", name, "error", err)
			continue
		}
		if unfinished(m) {
			d.releases.expect(name)
		}
		if !adoptable(m) && !d.lingers(m) {
			d.Log.Info("not watched", "mapping", name, "state", m.State, "reason", m.Reason)
			continue
		}
		mp, err := d.begin(ctx, m, nil)
		switch {
		case err != nil && mp == nil:
			d.Log.Error("a mapping is not watched", "mapping", name, "error", err)
		case err != nil:
			d.Log.Error("changed while no guard was running", "mapping", name, "error", err)
		default:
			d.Log.Info("adopted, unchanged while no guard was running", "mapping", name, "grade", mp.watch.Last().Grade)
		}
	}
}

// adoptable reports whether m is live and as it was recorded, as far as its record
// says. What a command has under way is that command's.
func adoptable(m record.Record) bool {
	return m.Guard && (m.State == guard.Healthy || m.State == guard.Weakened || m.State == guard.Stale)
}

// lingers reports whether m is being released and live all the same, until the last
// user closes its device (unmap --deferred). Its blocks have to stay as long.
func (d *Daemon) lingers(m record.Record) bool {
	if !m.Guard || m.State != guard.Releasing {
		return false
	}
	info, err := d.Mapper.Info(dm.ByUUID(m.UUID))
	return err == nil && info.DeferredRemove
}

// duplicate returns an Image of the same open description as f, which counts as one
// opener only, or nil when f is not a read-only descriptor of m's image.
func duplicate(f *os.File, m record.Record) (*image.Image, error) {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_GETFL", err)
	}
	id, err := watch.IDOf(f)
	if err != nil {
		return nil, err
	}
	if flags&unix.O_ACCMODE != unix.O_RDONLY || !id.SameInode(m.Image.FileID) {
		return nil, fs.ErrInvalid
	}
	named, err := again(f, m.Image.Path)
	if err != nil {
		return nil, err
	}
	img, err := image.Adopt(named)
	if err != nil {
		named.Close()
	}
	return img, err
}

// again returns one more descriptor of f's open description, called name.
func again(f *os.File, name string) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
