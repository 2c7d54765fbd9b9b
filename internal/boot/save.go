package boot

import (
	"context"
	"fmt"
	"path"
	"strings"

	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/fault"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
	"dmloop/internal/record"
)

// Recorder has the records of live mappings; *lifecycle.System is one.
type Recorder interface {
	Recorded(ctx context.Context, target string) (record.Record, image.Mount, error)
}

// SaveOptions are the choices of `dmloop boot save`.
type SaveOptions struct {
	Way      Way
	Fallback Fallback
}

// Make returns the manifest of a live, sound mapping.
func Make(ctx context.Context, sys Recorder, devices blockdev.Finder, target string, o SaveOptions) (Manifest, error) {
	rec, mount, err := sys.Recorded(ctx, target)
	if err != nil {
		return Manifest{}, err
	}
	refuse := func(format string, args ...any) (Manifest, error) {
		return Manifest{}, &fault.Error{Class: fault.NotMappable, Subject: target, Message: fmt.Sprintf(format, args...)}
	}
	base, reason := shimBase(rec.Base)
	if reason != "" {
		return Manifest{}, &fault.Error{Class: fault.NotMappable, Subject: target, Message: reason,
			Remedy: advice.ShimTheHost}
	}
	device, err := devices.ByNumber(base)
	if err != nil {
		return Manifest{}, err
	}
	fs, err := devices.Filesystem(device)
	if err != nil {
		return Manifest{}, err
	}
	// The same search as at boot has to find the same device.
	found, err := devices.Find("UUID=" + fs.UUID)
	if err != nil {
		return refuse("the host file system would not be found at boot: %v", err)
	}
	if found.Number != base {
		return refuse("at boot the host file system would be looked for on %s, and it is on %s", found.Path, device.Path)
	}
	partUUID, err := devices.PartUUID(device)
	if err != nil {
		return Manifest{}, err
	}
	inside, ok := strings.CutPrefix(rec.Image.Path, strings.TrimSuffix(mount.Point, "/"))
	if !ok || !strings.HasPrefix(inside, "/") {
		return refuse("the image is not found below the mount point %s any more", mount.Point)
	}
	m := Manifest{
		Way: o.Way, Fallback: o.Fallback, Record: rec, Path: path.Join(mount.Root, inside),
		Host: Host{Filesystem: fs.Type, UUID: fs.UUID, PartUUID: partUUID, Sectors: device.Size, Shim: rec.Base.Name, Base: base},
	}
	if len(rec.Parts) > 0 {
		return refuse("partitions inside an image are not brought up at boot: map it without --partscan")
	}
	if fstype.Of(fs.Type).Bare {
		return refuse("%v", errUnnamed)
	}
	if rec.Sealed && fstype.Of(fs.Type).SwapMoves {
		return refuse("%v", errSealedOnF2FS)
	}
	m.Record.State, m.Record.Reason, m.Record.Device = guard.Healthy, "", dmtable.Device{}
	return m, m.check()
}

// shimBase returns the device below a host device that shows one whole other device,
// which is what a shim does and what can be made again at boot from a UUID alone.
func shimBase(host record.Base) (dmtable.Device, string) {
	table, err := dmtable.ParseText(host.Table)
	if err != nil {
		return dmtable.Device{}, err.Error()
	}
	segments, err := table.Segments()
	if err != nil || len(segments) != 1 || segments[0].Start != 0 {
		return dmtable.Device{}, "the host file system is on " + host.Name + ", which is not one other device from beginning to end"
	}
	return segments[0].Device, ""
}
