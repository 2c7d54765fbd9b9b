package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/mapper"
	"dmloop/internal/record"
)

// Shim makes the identity device NAME over the block device at path: the same
// sectors under another number. A file system mounted from it leaves the device
// below free for device-mapper to share. It returns the path of the new device.
func (s *System) Shim(ctx context.Context, path, name string) (string, error) {
	name, err := shimName(path, name)
	if err != nil {
		return "", err
	}
	t, err := s.lock(ctx)
	if err != nil {
		return "", err
	}
	defer t.end()
	dev, err := blockDevice(path)
	if err != nil {
		return "", err
	}
	conn, err := s.mapper()
	if err != nil {
		return "", err
	}
	if err := s.dropHalfMade(conn, name); err != nil {
		return "", err
	}
	if err := s.reachedElsewhere(conn, path, name, dev); err != nil {
		return "", err
	}
	size, err := blockdev.DeviceSize(s.sysfs, dev)
	if err != nil {
		return "", fault.Wrap(path, "", err)
	}
	uuid, err := record.NewShimUUID(name)
	if err != nil {
		return "", err
	}
	table, err := dmtable.Build([]dmtable.Segment{{Device: dev, Length: size}})
	if err != nil {
		return "", fault.Wrap(path, "", err)
	}
	readOnly, err := blockdev.ReadOnly(s.sysfs, conn, dev)
	if err != nil {
		return "", fault.Wrap(path, "", err)
	}
	if readOnly {
		s.log.Warn("the device is read-only, and so is the shim", "device", path, "shim", name)
	}
	if err := conn.Make(name, uuid, table, readOnly, 0); err != nil {
		return "", shimError(conn, path, name, err)
	}
	return "/dev/mapper/" + name, nil
}

// shimName returns the device-mapper name for what the user asked for.
func shimName(path, name string) (string, error) {
	if name == "" {
		return "", &fault.Error{Class: fault.Usage, Message: "the name of a shim cannot be empty"}
	}
	name, err := mangled(path, name)
	if e := (*fault.Error)(nil); errors.As(err, &e) {
		e.Remedy = advice.NameShim
	}
	return name, err
}

// ShimStatus is one shim as `list --shims` shows it.
type ShimStatus struct {
	Name     string
	UUID     string
	Device   string // /dev/mapper/NAME
	MajMin   string
	Below    dmtable.Device // what it shows; major 0 for one that was not finished
	Size     extents.Bytes
	ReadOnly bool
	Open     int
	Users    []string // who uses it, for people
}

// Shims lists the shims that are live, those named or all.
func (s *System) Shims(_ context.Context, targets ...string) ([]ShimStatus, error) {
	conn, err := s.mapper()
	if err != nil {
		return nil, err
	}
	all, err := conn.List()
	if err != nil {
		return nil, err
	}
	found := []ShimStatus{}
	for _, d := range all {
		if !strings.HasPrefix(d.UUID, record.ShimPrefix) {
			continue
		}
		info, table, err := conn.State(dm.ByUUID(d.UUID))
		if errors.Is(err, dm.ErrNotFound) {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, fault.Wrap(d.Name, "", err)
		}
		st := ShimStatus{Name: info.Name, UUID: info.UUID, Device: mapper.Folder + info.Name, MajMin: info.Device.String(),
			Size: extents.Bytes(table.Size()) * dmtable.SectorSize, ReadOnly: info.ReadOnly, Open: info.OpenCount}
		if shows, err := table.Segments(); err == nil && len(shows) == 1 {
			st.Below = shows[0].Device
		}
		if info.OpenCount > 0 {
			st.Users = conn.Users(info.Device)
		}
		found = append(found, st)
	}
	if len(targets) == 0 {
		return found, nil
	}
	var picked []ShimStatus
	for _, t := range targets {
		i := slices.IndexFunc(found, func(st ShimStatus) bool { return slices.Contains(namesOf(t), st.Name) })
		if i < 0 {
			return nil, &fault.Error{Class: fault.NotFound, Subject: t, Message: "no such shim"}
		}
		picked = append(picked, found[i])
	}
	return picked, nil
}

// halfMade reports whether the device is a shim that shows nothing: whoever made it was
// killed before it went live.
func halfMade(info dm.Info) bool {
	return strings.HasPrefix(info.UUID, record.ShimPrefix) && !info.ActiveTable
}

// dropHalfMade removes a half-made shim of this name: the caller holds the lock, so nobody
// is at work on it.
func (s *System) dropHalfMade(conn *mapper.Mapper, name string) error {
	info, err := conn.Info(dm.ByName(name))
	if err != nil || !halfMade(info) {
		return nil // the next steps say so
	}
	s.log.Warn("a shim that was not finished is made again", "shim", name)
	_, err = conn.RemoveDevice(name, info.UUID)
	return fault.Wrap(name, "removing a shim that was not finished", err)
}

// reachedElsewhere refuses a device whose sectors another device-mapper device shows
// already. Device-mapper devices share what is below them, so the kernel would let one
// file system be mounted through both at a time, which destroys it.
func (s *System) reachedElsewhere(conn *mapper.Mapper, path, name string, dev dmtable.Device) error {
	if info, err := conn.Info(dm.ByName(name)); err == nil {
		return shimError(conn, path, name, fmt.Errorf("%s: %w", info.Name, dm.ErrExists))
	}
	above, err := blockdev.Above(s.sysfs, conn, dev)
	if err != nil {
		return fault.Wrap(path, "looking for devices that stand on it", err)
	}
	if len(above) == 0 {
		return nil
	}
	e := &fault.Error{Class: fault.Busy, Subject: path, Message: fmt.Sprintf("the device-mapper device %s shows the same sectors: "+
		"a file system could be mounted through both at a time, which would destroy it", above[0].Name)}
	if strings.HasPrefix(above[0].UUID, record.ShimPrefix) {
		e.Remedy = advice.UseShim.Of(above[0].Name)
	} else {
		e.Remedy = advice.ShimOnDevice.Of(above[0].Name)
	}
	return e
}

// blockDevice returns the number of the block device at path.
func blockDevice(path string) (dmtable.Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		err = &os.PathError{Op: "stat", Path: path, Err: err}
		return dmtable.Device{}, &fault.Error{Class: fault.ClassOf(err), Subject: path, Message: "no such device", Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return dmtable.Device{}, &fault.Error{Class: fault.Usage, Subject: path, Message: "not a block device"}
	}
	return dmtable.DeviceOf(st.Rdev), nil
}

func shimError(conn *mapper.Mapper, path, name string, err error) error {
	switch {
	case errors.Is(err, dm.ErrExists):
		return &fault.Error{Class: fault.Busy, Subject: name, Message: "a device-mapper device of this name exists", Err: err}
	case errors.Is(err, dm.ErrBusy):
		return &fault.Error{Class: fault.Busy, Subject: path, Message: "the device is in use by " + conn.NamedPath(path), Err: err,
			Remedy: advice.UnmountForShim.Of(name)}
	}
	return fault.Wrap(path, "", err)
}
