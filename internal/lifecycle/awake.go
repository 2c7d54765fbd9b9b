package lifecycle

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/fault"
	"dmloop/internal/frozen"
	"dmloop/internal/image"
)

// thawPatience is how long a file system may take to say that it takes changes. No disk
// is asked for that.
const thawPatience = 3 * time.Second

// awake refuses, as Busy, to begin with a file whose file system is frozen or stands on a
// suspended device: a call that changes something would sleep until that ends, which no
// signal ends, and with it everybody who waits for our lock.
func (s *System) awake(ctx context.Context, known sleepers, path string, fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fault.Wrap(path, "", err)
	}
	own := dmtable.DeviceOf(st.Dev)
	if why := known[own]; why != nil {
		return &fault.Error{Class: fault.Busy, Subject: path, Message: why.Message, Remedy: why.Remedy}
	}
	device := own
	if device.Major == 0 { // btrfs
		mount, err := image.MountOf(fd)
		if err != nil {
			return fault.Wrap(path, "", err)
		}
		var source unix.Stat_t
		if unix.Stat(mount.Source, &source) == nil {
			device = dmtable.DeviceOf(source.Rdev)
		}
	}
	if err := s.running(path, device); err != nil {
		return known.add(own, err)
	}
	err := frozen.Ask(ctx, fd, thawPatience)
	if errors.Is(err, frozen.ErrFrozen) {
		point := "MOUNTPOINT"
		if mount, err := image.MountOf(fd); err == nil && mount.Point != "" {
			point = mount.Point
		}
		return known.add(own, &fault.Error{Class: fault.Busy, Subject: path, Message: "the file system that it lies on is frozen: it takes no changes (fsfreeze, or a snapshot is being taken)",
			Remedy: advice.Thaw.Of(point)})
	}
	return fault.Wrap(path, "", err)
}

// running refuses, as Busy, a file on a device that is suspended or stands on one that is.
// Nothing is opened for that, not even a folder, whose reader may have to wait for a disk.
func (s *System) running(path string, device dmtable.Device) *fault.Error {
	name, found := blockdev.Suspended(s.sysfs, device)
	if !found {
		return nil
	}
	return &fault.Error{Class: fault.Busy, Subject: path, Message: "the device " + name + ", on which its file system lies, is suspended",
		Remedy: advice.ResumeDevice.Of(name)}
}

// sleepers says why a file system, by its device, takes no changes: each is asked once, for
// the answer may take its time.
type sleepers map[dmtable.Device]*fault.Error

func (k sleepers) add(device dmtable.Device, why *fault.Error) error {
	k[device] = why
	return why
}

// Awake refuses subject, which is made or written at the path at, a file or a folder, while
// the file system of that takes no changes. It is for what writes to one without the other
// use cases.
func (s *System) Awake(ctx context.Context, subject, at string) error {
	fd, err := unix.Open(at, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // whoever opens it says why
	}
	defer unix.Close(fd)
	return s.awake(ctx, sleepers{}, subject, fd)
}
