// Package live is package guard on the running kernel: it reads what a live mapping and its
// image are now, and compares that again and again. It is for programs that make their own
// device-mapper devices on the blocks of a file. It changes nothing but the page cache of
// the file; what follows from a finding is the caller's to decide, with guard.Decide.
//
// It needs what dmloop itself needs: root, Linux 6.1 or later, and a file system that
// dmloop knows.
package live

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/observe"
	"dmloop/internal/pin"
	"dmloop/internal/record"
	"dmloop/internal/survey"
)

// Mapping is what its maker knows of a live device-mapper device on the blocks of a file.
type Mapping struct {
	Image  string        // path of the file
	UUID   string        // device-mapper uuid of the device
	Table  dmtable.Table // the rows that the device has to have
	Offset extents.Bytes // of the file's byte that is the device's first
}

// Watcher compares a mapping with what it was when the Watcher was made. It is used by one
// goroutine at a time.
type Watcher struct {
	devices *mapper.Mapper
	image   *image.Image
	reader  *observe.Reader
	want    guard.Expected
}

// New reads everything about the mapping and fails unless the image obeys the rules of
// extents.Rules, and Table is where its blocks lie now: with an *extents.Refusal in its
// chain for a broken rule. Rules about pins are left to the caller.
func New(ctx context.Context, m Mapping, log *slog.Logger) (w *Watcher, err error) {
	devices, err := mapper.Open(log)
	if err != nil {
		return nil, err
	}
	w = &Watcher{devices: devices}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
			w = nil
		}
	}()
	info, err := devices.Info(dm.ByUUID(m.UUID))
	if err != nil {
		return w, fmt.Errorf("the device with the uuid %q: %w", m.UUID, err)
	}
	if w.image, err = image.Open(m.Image); err != nil {
		return w, err
	}
	looker := survey.Surveyor{Log: log, Sysfs: devices.Sysfs, Mapper: func() (*mapper.Mapper, error) { return devices, nil }, Openers: time.Second}
	size := extents.Bytes(m.Table.Size()) * dmtable.SectorSize
	r, err := looker.Survey(ctx, w.image, m.Image, survey.Options{Window: survey.Window{Offset: m.Offset, Limit: size},
		MaxExtents: dmtable.MaxRows, Look: true, Own: m.UUID})
	if err != nil {
		return w, err
	}
	broken := slices.DeleteFunc(r.Problems, func(p extents.Problem) bool { return p.Rule == extents.Unpinnable })
	if len(broken) > 0 {
		return w, extents.Refuse(m.Image, broken...)
	}
	if diff := m.Table.Diff(r.Table); diff != "" {
		return w, &fault.Error{Class: fault.StaleMapping, Subject: m.Image, Message: "its blocks are not where the rows of the device say: " + diff}
	}
	rec := r.NewRecord(w.image, info.Name, m.UUID)
	rec.Device, rec.ReadOnly, rec.OnChange = info.Device, info.ReadOnly, guard.OnChangeReport
	rec.Grade = pin.GradeOf(pin.Evidence{Filesystem: r.Facts.Filesystem, Reflink: r.Facts.Reflink, InForce: r.InForce})
	for _, k := range r.InForce {
		rec.Pins = append(rec.Pins, record.Pin{Kind: k})
	}
	host, err := devices.Info(dm.ByDevice(r.Stack.Host))
	if err != nil {
		return w, fmt.Errorf("the host device %s: %w", r.Stack.Host, err)
	}
	rec.Base.UUID = host.UUID
	w.reader = &observe.Reader{Mapper: devices, Image: w.image, Record: rec, Sysfs: devices.Sysfs}
	w.want = observe.Expect(rec)
	return w, nil
}

// Check reads everything again, once, and returns every difference.
func (w *Watcher) Check(ctx context.Context) []guard.Finding {
	return guard.Check(w.want, w.reader.Full(ctx, w.reader.Quick(ctx, true)))
}

// Watch checks at the given pace until ctx ends, and calls report after the first check and
// whenever the decision or the kinds of findings changed. The next check waits for report.
func (w *Watcher) Watch(ctx context.Context, pace guard.Pace, report func(guard.Report)) {
	watch := guard.NewWatch(w.want, w.reader, reporter(report), guard.NewBudget(pace))
	watch.First(ctx)
	watch.Run(ctx)
}

// Close gives back what the Watcher has open. The mapping stays as it is.
func (w *Watcher) Close() error {
	var err error
	if w.reader != nil {
		err = w.reader.Close()
	}
	if w.image != nil {
		w.image.Close()
	}
	return errors.Join(err, w.devices.Close())
}

// reporter only reports.
type reporter func(guard.Report)

func (reporter) Act(context.Context, guard.Policy, string) error { return nil }
func (reporter) Restore(context.Context, []guard.PinKind) error {
	return errors.New("nobody sets pins here")
}
func (reporter) Checked(bool, time.Duration) {}
func (r reporter) Report(found guard.Report) { r(found) }
