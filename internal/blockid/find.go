package blockid

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/blockdev"
)

// ErrNotFound is wrapped by errors about a device that is not there (yet).
var ErrNotFound = errors.New("no such block device")

// ErrNoFilesystem is wrapped by errors about a device that has no known file system.
var ErrNoFilesystem = errors.New("no ext4, xfs, f2fs or btrfs file system")

// Finder looks for devices. Its fields are folders, so that tests can use others.
type Finder struct{ Sys, Dev string }

// Local returns the finder of this machine.
func Local() Finder { return Finder{Sys: "/sys", Dev: "/dev"} }

// Device is a block device that was found.
type Device struct {
	Number dmtable.Device
	Name   string // the kernel's, such as "vda1"
	Path   string // of its node
	Size   dmtable.Sectors
}

// Find returns the device that a source names: UUID= of a file system, PARTUUID= of
// a partition, or the path of a node. Devices of dmloop are never found: they show
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
	case "PARTUUID":
		match = func(d Device) (bool, error) {
			id, err := f.PartUUID(d)
			return err == nil && id != "" && strings.EqualFold(id, value), nil
		}
	default:
		return Device{}, fmt.Errorf("%s: a device is named by UUID=, PARTUUID= or its path", source)
	}
	all, err := f.devices(f.ours)
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

// Await is Find where the device may be late: it looks again and again for so long.
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
	all, err := f.devices(func(string) bool { return false })
	if err != nil {
		return nil, err
	}
	var matching []Device
	for _, d := range all {
		if f.Suspended(d) {
			return nil, fmt.Errorf("%s is suspended", d.Path)
		}
		if file, err := f.Filesystem(d); err == nil && strings.EqualFold(file.UUID, uuid) {
			matching = append(matching, d)
		}
	}
	return f.uppermost(matching)
}

// Suspended reports whether reads of the device wait for its resume, or for that of one
// below it.
func (f Finder) Suspended(d Device) bool {
	return suspended(filepath.Join(f.Sys, "class/block", d.Name), 16)
}

func suspended(dir string, depth int) bool {
	text, err := os.ReadFile(filepath.Join(dir, "dm/suspended"))
	if err == nil && strings.TrimSpace(string(text)) == "1" {
		return true
	}
	if depth == 0 {
		return false
	}
	below, _ := filepath.Glob(filepath.Join(dir, "slaves", "*"))
	return slices.ContainsFunc(below, func(b string) bool { return suspended(b, depth-1) })
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

// uppermost leaves out devices on which another one of the list stands.
func (f Finder) uppermost(list []Device) (top []Device, err error) {
	for _, d := range list {
		holders, err := os.ReadDir(filepath.Join(f.Sys, "class/block", d.Name, "holders"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		below := slices.ContainsFunc(holders, func(h fs.DirEntry) bool {
			return slices.ContainsFunc(list, func(o Device) bool { return o.Name == h.Name() })
		})
		if !below {
			top = append(top, d)
		}
	}
	return top, nil
}

// devices lists the machine's block devices that can hold a file system, without those
// to skip.
func (f Finder) devices(skip func(name string) bool) ([]Device, error) {
	entries, err := os.ReadDir(filepath.Join(f.Sys, "class/block"))
	if err != nil {
		return nil, err
	}
	var all []Device
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, "sr") || strings.HasPrefix(name, "fd") || skip(name) {
			continue // drives without a medium take seconds to say so
		}
		d, err := f.device(name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && d.Size == 0 {
			continue // gone meanwhile, or empty
		}
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// ours reports whether the device is one of dmloop's, or a partition of one, by its
// device-mapper uuid.
func (f Finder) ours(name string) bool {
	uuid, err := os.ReadFile(filepath.Join(f.Sys, "class/block", name, "dm/uuid"))
	return err == nil && strings.Contains(string(uuid), "DMLOOP")
}

func (f Finder) device(name string) (Device, error) {
	dir := filepath.Join(f.Sys, "class/block", name)
	number, err := os.ReadFile(filepath.Join(dir, "dev"))
	if err != nil {
		return Device{}, err
	}
	size, err := os.ReadFile(filepath.Join(dir, "size"))
	if err != nil {
		return Device{}, err
	}
	d := Device{Name: name, Path: filepath.Join(f.Dev, strings.ReplaceAll(name, "!", "/"))}
	if d.Number, err = dmtable.ParseDevice(strings.TrimSpace(string(number))); err != nil {
		return Device{}, err
	}
	sectors, err := strconv.ParseUint(strings.TrimSpace(string(size)), 10, 53)
	d.Size = dmtable.Sectors(sectors)
	return d, err
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
	dir, err := filepath.EvalSymlinks(filepath.Join(f.Sys, "dev/block", number.String()))
	if errors.Is(err, fs.ErrNotExist) {
		return Device{}, fmt.Errorf("%s: %w", number, ErrNotFound)
	}
	if err != nil {
		return Device{}, err
	}
	return f.device(filepath.Base(dir))
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
	found, ok := Identify(head[:n])
	if !ok {
		return Filesystem{}, fmt.Errorf("%s has %w", d.Path, ErrNoFilesystem)
	}
	return found, nil
}

// PartUUID returns the UUID of the partition that the device is; of anything else
// it is empty.
func (f Finder) PartUUID(d Device) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(f.Sys, "class/block", d.Name))
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(dir, "partition"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	number, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return "", err
	}
	disk := filepath.Dir(dir)
	block, err := os.ReadFile(filepath.Join(disk, "queue/logical_block_size"))
	if err != nil {
		return "", err
	}
	size, err := strconv.ParseInt(strings.TrimSpace(string(block)), 10, 32)
	if err != nil {
		return "", err
	}
	path := filepath.Join(f.Dev, strings.ReplaceAll(filepath.Base(disk), "!", "/"))
	whole, err := openDirect(path)
	if err != nil {
		return "", err
	}
	defer whole.Close()
	forced, err := blockdev.KernelForcesGPT()
	if err != nil {
		return "", err
	}
	parent, err := f.device(filepath.Base(disk))
	if err != nil {
		return "", err
	}
	return partitionUUID(blockdev.Disk{ReaderAt: whole, Block: size, Size: parent.Size, ForceGPT: forced}, number)
}
