package gate

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"dmloop/dmtable"
)

// What is a thing that the gate refuses.
type What uint32

// The things, as gate.c numbers them.
const (
	OpenFile What = iota + 1
	SetAttributes
	SetFileAttributes
	UnlinkFile
	RenameFile
	SetXattr
	Ioctl
	LoadTable
	RemoveDevice
	RenameDevice
	RemoveAllDevices
	ChangePartition
	ChangeLoop
)

// kinds are short names, for logs and metrics.
var kinds = map[What]string{
	OpenFile: "open", SetAttributes: "setattr", SetFileAttributes: "file-setattr", UnlinkFile: "unlink", RenameFile: "rename", SetXattr: "setxattr",
	Ioctl: "ioctl", LoadTable: "dm-load", RemoveDevice: "dm-remove", RenameDevice: "dm-rename", RemoveAllDevices: "dm-remove-all",
	ChangePartition: "partition", ChangeLoop: "loop",
}

// String returns a short name.
func (w What) String() string {
	if name, known := kinds[w]; known {
		return name
	}
	return fmt.Sprintf("other-%d", uint32(w))
}

// Denial is one thing that was refused.
type Denial struct {
	Number  uint64 // from 1, in the order of time; a gap is one that was not told
	Time    time.Time
	What    What
	Mapping UUID           // zero where the gate does not know it any more, or it was about all
	Device  dmtable.Device // of the file system or the device itself; 0:0 where it was about all
	Inode   uint64         // 0 for a device
	PID     int            // the process: of the initial pid namespace
	UID     uint32
	Program string // as the kernel knows the process: 15 bytes at most
}

func (g *Gate) denial(d gateDenial, mappings []Guarded) Denial {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // cannot fail with this clock
	out := Denial{
		Number: d.Number, What: What(d.What), Device: userDevice(d.Device), Inode: d.Inode, PID: int(d.Tgid), UID: d.Uid,
		Program: cString(d.Program[:]), Time: time.Now().Add(-time.Duration(now.Nano() - int64(d.Time))).Round(time.Millisecond),
	}
	for _, m := range mappings {
		same := slices.ContainsFunc(m.Devices, func(of Device) bool { return of.Number == out.Device })
		if out.Inode != 0 {
			same = m.Image.Inode == out.Inode && m.Image.Device() == out.Device
		}
		if same {
			out.Mapping = m.Mapping
			break
		}
	}
	return out
}

// Recent lists the last denials, at most 256, the newest last.
func (g *Gate) Recent() ([]Denial, error) {
	mappings, err := g.Mappings()
	if err != nil {
		return nil, err
	}
	var list []Denial
	recent, err := g.open(gateMapRecent)
	if err != nil {
		return nil, err
	}
	for slot := range recent.MaxEntries() {
		var d gateDenial
		if err := recent.Lookup(slot, &d); err != nil {
			return nil, err
		}
		if d.Number != 0 {
			list = append(list, g.denial(d, mappings))
		}
	}
	slices.SortFunc(list, func(a, b Denial) int { return cmp.Compare(a.Number, b.Number) })
	return list, nil
}

// Count is how many things were refused since the gate was loaded.
func (g *Gate) Count() (uint64, error) { return g.count(counterRefused) }

// Follow hands every denial to told as it comes, until ctx ends or the gate is taken away.
// One reader at a time has each.
func (g *Gate) Follow(ctx context.Context, told func(Denial)) error {
	denials, err := g.open(gateMapDenials)
	if err != nil {
		return err
	}
	r, err := ringbuf.NewReader(denials)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer stop()
	defer r.Close() //nolint:errcheck // nothing is lost
	for {
		r.SetDeadline(time.Now().Add(time.Second))
		sample, err := r.Read()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if err := g.locked(func() error { return nil }); err != nil {
				return err
			}
			continue
		case errors.Is(err, ringbuf.ErrClosed), errors.Is(err, os.ErrClosed):
			return ctx.Err()
		case err != nil:
			return err
		}
		var d gateDenial
		if err := binary.Read(bytes.NewReader(sample.RawSample), binary.NativeEndian, &d); err != nil {
			return err
		}
		mappings, err := g.Mappings()
		if err != nil {
			return err
		}
		told(g.denial(d, mappings))
	}
}
