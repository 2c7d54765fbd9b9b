package blockdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
)

// ErrNotFound is wrapped by errors about a device that is not there (yet).
var ErrNotFound = errors.New("no such block device")

// ErrNoFilesystem is wrapped by errors about a device that has no known file system.
var ErrNoFilesystem = errors.New("no file system that images can lie on")

// Finder looks for devices. Its fields are folders, so that tests can use others.
type Finder struct{ Sys, Dev string }

// Local returns the finder of this machine.
func Local() Finder { return Finder{Sys: "/sys", Dev: "/dev"} }

// Device is a block device that was found.
type Device struct {
	Number dmtable.Device
	Name   string          // the kernel's, such as "vda1"
	Path   string          // of its node
	Size   dmtable.Sectors // of 512 bytes
	Mapped bool            // whether it is a device-mapper device
	UUID   string          // device-mapper's, empty where there is none
}

// Find returns the device that a source names: UUID= or LABEL= of a file system, PARTUUID=
// of a partition, or the path of a node. Devices of dmloop are never found: they show
// the same file systems as the devices below them. When several devices show one
// file system that stand on one another, such as a multipath device and its paths,
// the topmost is meant; otherwise it is an error.
func (f Finder) Find(source string) (Device, error) {
	tag, value, found := strings.Cut(source, "=")
	if strings.HasPrefix(source, "/") || !found {
		return f.byPath(source)
	}
	var match func(Device) (bool, error)
	switch tag {
	case "UUID":
		match = func(d Device) (bool, error) {
			file, err := f.Filesystem(d)
			return err == nil && strings.EqualFold(file.UUID, value), nil
		}
	case "LABEL":
		match = func(d Device) (bool, error) {
			file, err := f.Filesystem(d)
			return err == nil && value != "" && file.Label == value, nil
		}
	case "PARTUUID":
		match = func(d Device) (bool, error) {
			id, err := f.PartUUID(d)
			return err == nil && id != "" && strings.EqualFold(id, value), nil
		}
	default:
		return Device{}, fmt.Errorf("%s: a device is named by UUID=, LABEL=, PARTUUID= or its path", source)
	}
	all, err := f.devices(ours)
	if err != nil {
		return Device{}, err
	}
	var matching []Device
	for _, d := range all {
		if ok, err := match(d); err != nil {
			return Device{}, err
		} else if ok {
			matching = append(matching, d)
		}
	}
	return f.topmost(source, matching)
}

// awaitStep is how often Await looks.
const awaitStep = 100 * time.Millisecond

// Await is Find for a device that may come late: it looks again and again for this long.
func (f Finder) Await(ctx context.Context, source string, patience time.Duration) (Device, error) {
	for deadline := time.Now().Add(patience); ; {
		d, err := f.Find(source)
		if !errors.Is(err, ErrNotFound) || time.Now().After(deadline) {
			return d, err
		}
		select {
		case <-ctx.Done():
			return d, err
		case <-time.After(awaitStep):
		}
	}
}

// Carriers lists the devices that show the file system of this UUID, those of dmloop too,
// without those on which another of them stands. A suspended device, which would make the
// reader wait, is an error: it may be one.
func (f Finder) Carriers(uuid string) ([]Device, error) {
	all, err := f.devices(func(Device) bool { return false })
	if err != nil {
		return nil, err
	}
	var matching []Device
	for _, d := range all {
		if _, found := Suspended(f.Sys, d.Number); found {
			return nil, fmt.Errorf("%s is suspended", d.Path)
		}
		if file, err := f.Filesystem(d); err == nil && strings.EqualFold(file.UUID, uuid) {
			matching = append(matching, d)
		}
	}
	return f.uppermost(matching)
}

// topmost returns the one device of the list on which no other one of it stands.
func (f Finder) topmost(source string, list []Device) (Device, error) {
	top, err := f.uppermost(list)
	if err != nil {
		return Device{}, err
	}
	var paths []string
	for _, d := range top {
		paths = append(paths, d.Path)
	}
	switch len(top) {
	case 0:
		return Device{}, fmt.Errorf("%s: %w", source, ErrNotFound)
	case 1:
		return top[0], nil
	}
	return Device{}, fmt.Errorf("%s is on several devices: %s", source, strings.Join(paths, " "))
}

// uppermost leaves out devices on which another of the list stands.
func (f Finder) uppermost(list []Device) (top []Device, err error) {
	for _, d := range list {
		holders, err := folder{dir: filepath.Join(f.Sys, "class/block", d.Name)}.beside("holders")
		if err != nil {
			return nil, err
		}
		below := slices.ContainsFunc(holders, func(h folder) bool {
			return slices.ContainsFunc(list, func(o Device) bool { return o.Name == h.name() })
		})
		if !below {
			top = append(top, d)
		}
	}
	return top, nil
}

// devices lists the machine's block devices that can hold a file system, without those
// to skip.
func (f Finder) devices(skip func(Device) bool) ([]Device, error) {
	entries, err := os.ReadDir(filepath.Join(f.Sys, "class/block"))
	if err != nil {
		return nil, err
	}
	var all []Device
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, "sr") || strings.HasPrefix(name, "fd") {
			continue // drives without a medium take seconds to say so
		}
		found, err := openNamed(f.Sys, name)
		if err == nil {
			var d Device
			if d, err = f.device(found); err == nil && d.Size > 0 && !skip(d) {
				all = append(all, d)
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // gone meanwhile
			return nil, err
		}
	}
	return all, nil
}

// ours reports whether the device is one of dmloop's, or a partition of one.
func ours(d Device) bool { return strings.Contains(d.UUID, "DMLOOP") }

func (f Finder) device(at folder) (Device, error) {
	d := Device{Number: at.number, Name: at.name(), Path: f.node(at)}
	var err error
	if d.Size, err = at.size(); err != nil {
		return Device{}, err
	}
	if d.Mapped, err = at.has("dm"); err == nil && d.Mapped {
		d.UUID, err = at.text("dm/uuid")
	}
	return d, err
}

// node is the path of the device's node.
func (f Finder) node(at folder) string {
	return filepath.Join(f.Dev, strings.ReplaceAll(at.name(), "!", "/"))
}

// byPath returns the device whose node, or a link to it, is at path.
func (f Finder) byPath(path string) (Device, error) {
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); {
	case errors.Is(err, unix.ENOENT):
		return Device{}, fmt.Errorf("%s: %w", path, ErrNotFound)
	case err != nil:
		return Device{}, &os.PathError{Op: "stat", Path: path, Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFBLK:
		return Device{}, fmt.Errorf("%s is not a block device", path)
	}
	return f.ByNumber(dmtable.DeviceOf(st.Rdev))
}

// ByNumber returns the device of this number.
func (f Finder) ByNumber(number dmtable.Device) (Device, error) {
	at, err := openFolder(f.Sys, number)
	if errors.Is(err, fs.ErrNotExist) {
		return Device{}, fmt.Errorf("%s: %w", number, ErrNotFound)
	}
	if err != nil {
		return Device{}, err
	}
	return f.device(at)
}

// Filesystem reads the superblock on the device.
func (f Finder) Filesystem(d Device) (Filesystem, error) {
	device, err := openDirect(d.Path)
	if err != nil {
		return Filesystem{}, err
	}
	defer device.Close()
	head := make([]byte, headSize)
	n, err := device.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Filesystem{}, err
	}
	found, ok := identify(head[:n])
	if !ok {
		return Filesystem{}, fmt.Errorf("%s has %w", d.Path, ErrNoFilesystem)
	}
	return found, nil
}

// PartUUID returns the UUID of the partition that the device is; of anything else
// it is empty.
func (f Finder) PartUUID(d Device) (string, error) {
	at, err := openNamed(f.Sys, d.Name)
	if err != nil {
		return "", err
	}
	number, err := at.number64("partition")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	disk, _, err := at.disk()
	if err != nil {
		return "", err
	}
	block, err := disk.logicalBlock()
	if err != nil {
		return "", err
	}
	size, err := disk.size()
	if err != nil {
		return "", err
	}
	forced, err := KernelForcesGPT()
	if err != nil {
		return "", err
	}
	whole, err := openDirect(f.node(disk))
	if err != nil {
		return "", err
	}
	defer whole.Close()
	return partitionUUID(Disk{ReaderAt: whole, Block: int64(block), Size: size, ForceGPT: forced}, int(number))
}

// errNoTable says that a disk has no partition table that is understood.
var errNoTable = errors.New("no GPT or MBR partition table")

// partitionUUID returns what the kernel and udev call PARTUUID of a partition that the
// kernel found. Of a table that is refused it counts what was understood: whether the
// partitions can be used is not the question here.
func partitionUUID(disk Disk, number int) (string, error) {
	table, err := ReadPartitions(disk)
	if id := table.UUID(number); id != "" {
		return id, nil
	}
	if err == nil {
		err = errNoTable
	}
	return "", err
}
