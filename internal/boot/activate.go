package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/blockdev"
	"dmloop/internal/fault"
	"dmloop/internal/hostfiles"
	"dmloop/internal/image"
	"dmloop/internal/lifecycle"
	"dmloop/internal/record"
	"dmloop/internal/survey"
)

// System is what a boot needs of the use cases; *lifecycle.System is one.
type System interface {
	EnsureShim(ctx context.Context, path, name string) (device string, there bool, err error)
	EnsureMapped(ctx context.Context, path string, o lifecycle.MapOptions) (st lifecycle.Status, there bool, err error)
	Inspect(ctx context.Context, path string) (image.Identity, extents.Layout, error)
	LiveTable(of lifecycle.Status) (dmtable.Table, error)
	Restore(ctx context.Context, m record.Record) (lifecycle.Status, error)
	Unmap(ctx context.Context, target string, o lifecycle.UnmapOptions) error
	MapLoop(ctx context.Context, path string, o lifecycle.MapOptions) (device string, err error)
}

// Booter activates manifests in an initramfs.
type Booter struct {
	System  System
	Devices blockdev.Finder
	Log     *slog.Logger
	Run     string        // folder for what the real root has to know: RunDir
	Wait    time.Duration // for the host's device to appear
}

// RunDir has a file for each image that was activated or refused at this boot.
const RunDir = "/run/dmloop/boot"

// Outcome says what became of an image.
type Outcome struct {
	Device   string
	There    bool     // an earlier call has dealt with it
	Refused  []string // why it was not mapped
	Fallback Fallback // what was done instead, or is to be done: Shell
}

// Activate brings one image up as its manifest says. A host device that is not there
// is an error that wraps blockdev.ErrNotFound: it may come yet. An image that differs
// from its manifest is refused, which is not an error: the outcome says why, and that the
// fallback was taken. It may be called again and again.
func (b Booter) Activate(ctx context.Context, m Manifest, fallback Fallback) (Outcome, error) {
	if fallback == "" {
		fallback = m.Fallback
	}
	if done, ok := b.earlier(m.Record.Name); ok {
		return done, nil
	}
	device, err := b.Devices.Await(ctx, "UUID="+m.Host.UUID, b.Wait)
	if err != nil {
		return Outcome{}, err
	}
	partUUID, err := b.Devices.PartUUID(device)
	if err != nil {
		return Outcome{}, err
	}
	shim, _, err := b.System.EnsureShim(ctx, device.Path, m.Host.Shim)
	if err != nil {
		return Outcome{}, err
	}
	host := hostfiles.BootHost{Name: m.Record.Name, Device: shim, Type: m.Host.Filesystem, Point: Point(m.Record.Name), Image: m.Path}
	var reasons []string
	if reasons = m.HostDifferences(device.Size, partUUID); len(reasons) == 0 {
		if m.Way == BeforeMount {
			reasons, err = b.beforeMount(ctx, m, device, shim)
		} else {
			reasons, err = b.verified(ctx, m, host)
			host.Mounted = err == nil && len(reasons) == 0
		}
	}
	if err != nil {
		return Outcome{}, err
	}
	if len(reasons) > 0 {
		return b.refused(ctx, m, host, reasons, fallback)
	}
	out := Outcome{Device: "/dev/mapper/" + m.Record.Name}
	return out, b.note(host, out)
}

// verified is the way Verify: mount read-only, which replays the host's journal,
// compare, and map by all the rules.
func (b Booter) verified(ctx context.Context, m Manifest, host hostfiles.BootHost) (reasons []string, err error) {
	if err := mountHost(host, true); err != nil {
		return nil, err
	}
	reasons, err = b.compareAndMap(ctx, m, host)
	if err != nil || len(reasons) > 0 {
		if uerr := unmountHost(host); uerr != nil {
			b.Log.Warn("the host file system stays mounted", "point", host.Point, "error", uerr)
		}
	}
	return reasons, err
}

func (b Booter) compareAndMap(ctx context.Context, m Manifest, host hostfiles.BootHost) ([]string, error) {
	path := filepath.Join(host.Point, m.Path)
	id, layout, err := b.System.Inspect(ctx, path)
	if err != nil {
		return []string{err.Error()}, nil
	}
	if reasons := m.Differences(id, layout); len(reasons) > 0 {
		return reasons, nil
	}
	if err := remountHost(host); err != nil {
		return nil, err
	}
	st, _, err := b.System.EnsureMapped(ctx, path, mapOptions(m))
	if err != nil {
		return reasonsOf(err), nil
	}
	// The rows that were loaded are those that were saved, on the device of today.
	live, err := b.System.LiveTable(st)
	if err != nil {
		return nil, err
	}
	segments, err := live.Segments()
	if err != nil || len(segments) == 0 {
		return nil, fmt.Errorf("the table of %s: %w", st.Name, err)
	}
	want, err := m.Table(segments[0].Device)
	if err != nil {
		return nil, err
	}
	if diff := want.Diff(live); diff != "" {
		return []string{"its table is not the one that was saved: " + diff}, b.System.Unmap(ctx, st.Name, lifecycle.UnmapOptions{})
	}
	return nil, nil
}

// beforeMount is the way BeforeMount: the manifest is all there is.
func (b Booter) beforeMount(ctx context.Context, m Manifest, device blockdev.Device, shim string) ([]string, error) {
	below, err := b.Devices.Find(shim)
	if err != nil {
		return nil, err
	}
	if !below.Mapped {
		return nil, fmt.Errorf("%s is not a device-mapper device", shim)
	}
	rec := m.Record
	if rec.Table, err = m.Table(device.Number); err != nil {
		return nil, err
	}
	rec.Image.Path = filepath.Join(Point(rec.Name), m.Path)
	rec.Image.Major, rec.Image.Minor = below.Number.Major, below.Number.Minor
	rec.Base = record.Base{Device: below.Number, Name: m.Host.Shim, UUID: below.UUID, Table: fmt.Sprintf("0 %d linear %s 0\n", device.Size, device.Number)}
	rec.Guard = true
	if _, err := b.System.Restore(ctx, rec); err != nil {
		return reasonsOf(err), nil
	}
	return nil, nil
}

// mapOptions are the options with which the image was mapped when it was saved. The
// guard starts in the real root.
func mapOptions(m Manifest) lifecycle.MapOptions {
	r := m.Record
	id := strings.TrimPrefix(r.UUID, record.UUIDPrefix)
	if len(id) > 32 {
		id = id[:32]
	}
	o := lifecycle.MapOptions{
		Options: survey.Options{Window: survey.Window{Offset: r.Offset, Limit: r.Size}, MaxExtents: max(survey.DefaultMaxExtents, r.Extents),
			AsSealed: r.Sealed},
		Name: r.Name, ReadOnly: r.ReadOnly, OnChange: r.OnChange, UdevRules: r.UdevRules, NoGuard: !r.Guard, GuardLater: r.Guard, Unsafe: r.Unsafe, UUID: id,
	}
	if len(r.Pins) == 0 {
		o.Pin = lifecycle.PinNone
	}
	return o
}

// reasonsOf lists the broken rules in an error, or its text.
func reasonsOf(err error) []string {
	var e *fault.Error
	if !errors.As(err, &e) || len(e.Problems) == 0 {
		return []string{err.Error()}
	}
	var reasons []string
	for _, p := range e.Problems {
		reasons = append(reasons, p.String())
	}
	return reasons
}

// mountHost mounts the host file system from the shim.
func mountHost(h hostfiles.BootHost, readOnly bool) error {
	if err := os.MkdirAll(h.Point, 0o700); err != nil {
		return err
	}
	var flags uintptr
	if readOnly {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount(h.Device, h.Point, h.Type, flags, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", h.Device, err)
	}
	return nil
}

// remountHost makes the mounted host file system writable: an image is pinned on it,
// and the real root goes on with it.
func remountHost(h hostfiles.BootHost) error {
	if err := unix.Mount("", h.Point, "", unix.MS_REMOUNT, ""); err != nil {
		return fmt.Errorf("mounting %s for writing: %w", h.Device, err)
	}
	return nil
}

func unmountHost(h hostfiles.BootHost) error {
	if err := unix.Unmount(h.Point, 0); err != nil {
		return fmt.Errorf("unmounting %s: %w", h.Point, err)
	}
	return nil
}
