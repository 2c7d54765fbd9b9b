// Package blockdev reads block devices: what sysfs says of them, how they stand on one
// another, their partition tables and the file systems on them. It reads the disks itself,
// so that it gives the same answer in an initramfs without udev.
//
// It finds the sectors that hold a file's bytes: from the device that a file system is
// mounted from, through that device's own table, to the base devices exactly one layer
// below. It is the only place where an address of a file system becomes an address of a
// device, so it refuses what it does not understand, and it writes to no device.
package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
)

// folder is a block device's folder in sysfs, by which all facts about it are read.
type folder struct {
	number dmtable.Device
	dir    string // resolved, so its parent is the disk of a partition
}

// openFolder finds the device under sysfs, which is /sys except in tests.
func openFolder(sysfs string, number dmtable.Device) (folder, error) {
	link := filepath.Join(sysfs, "dev", "block", number.String())
	dir, err := follow(link)
	if errors.Is(err, fs.ErrNotExist) {
		return folder{}, fmt.Errorf("%s is not a block device of this machine (no %s): %w", number, link, fs.ErrNotExist)
	}
	if err != nil {
		return folder{}, err
	}
	return folder{number: number, dir: dir}, nil
}

// follow returns the folder that one of sysfs's links names. There are no links on the way
// there.
func follow(link string) (dir string, err error) {
	to, err := os.Readlink(link)
	switch {
	case errors.Is(err, unix.EINVAL): // the folder itself
		return link, nil
	case err != nil || filepath.IsAbs(to):
		return to, err
	}
	return filepath.Join(filepath.Dir(link), to), nil
}

// openNamed finds the device that the kernel calls name, such as "vda1".
func openNamed(sysfs, name string) (folder, error) {
	dir, err := follow(filepath.Join(sysfs, "class/block", name))
	if err != nil {
		return folder{}, err
	}
	return folderAt(dir)
}

// folderAt returns the device whose folder is dir.
func folderAt(dir string) (folder, error) {
	d := folder{dir: dir}
	text, err := d.text("dev")
	if err != nil {
		return folder{}, err
	}
	d.number, err = dmtable.ParseDevice(text)
	return d, err
}

// DeviceSize returns the device's size in sectors of 512 bytes. Sysfs is /sys except in
// tests. A device that is not there wraps fs.ErrNotExist.
func DeviceSize(sysfs string, number dmtable.Device) (dmtable.Sectors, error) {
	d, err := openFolder(sysfs, number)
	if err != nil {
		return 0, err
	}
	return d.size()
}

func (d folder) size() (dmtable.Sectors, error) {
	n, err := d.number64("size")
	return dmtable.Sectors(n), err
}

// name is the kernel's name of the device, such as "dm-0" or "vda1".
func (d folder) name() string { return filepath.Base(d.dir) }

// KernelName returns the kernel's name of a block device, such as "dm-0". Sysfs is /sys
// except in tests.
func KernelName(sysfs string, number dmtable.Device) (string, error) {
	d, err := openFolder(sysfs, number)
	return d.name(), err
}

// label is the device's name in /dev/mapper, or else the kernel's: dm-3 says nothing to
// people.
func (d folder) label() string {
	if name, err := d.text("dm/name"); err == nil {
		return name
	}
	return d.name()
}

// beside returns the devices that the folder links to in "holders", which stand on it, or
// in "slaves", on which it stands. A device without such links has none.
func (d folder) beside(links string) ([]folder, error) {
	entries, err := os.ReadDir(filepath.Join(d.dir, links))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	found := make([]folder, 0, len(entries))
	for _, e := range entries {
		found = append(found, folder{dir: filepath.Join(d.dir, links, e.Name())})
	}
	return found, err
}

// Holders returns the names of the devices that stand on the device: those in /dev/mapper
// where they have one, otherwise the kernel's. Sysfs is /sys except in tests.
func Holders(sysfs string, number dmtable.Device) (names []string, err error) {
	d, err := openFolder(sysfs, number)
	if err != nil {
		return nil, err
	}
	holders, err := d.beside("holders")
	for _, h := range holders {
		names = append(names, h.label())
	}
	return names, err
}

// AnyMapped reports whether the kernel shows a device-mapper device. Sysfs is /sys except
// in tests.
func AnyMapped(sysfs string) bool {
	found, err := filepath.Glob(filepath.Join(sysfs, "block/dm-*"))
	return err != nil || len(found) > 0
}

// has reports whether the device's folder has this file or folder.
func (d folder) has(name string) (bool, error) {
	_, err := os.Stat(filepath.Join(d.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// text reads a file that holds one line.
func (d folder) text(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(d.dir, name))
	return strings.TrimSuffix(string(text), "\n"), err
}

// number64 reads a file that holds one decimal number.
func (d folder) number64(name string) (uint64, error) {
	text, err := d.text(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s holds %q instead of a number", filepath.Join(d.dir, name), text)
	}
	return n, nil
}

// path reads the node's name from the device's uevent file.
func (d folder) path() (string, error) {
	file := filepath.Join(d.dir, "uevent")
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if name, found := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "DEVNAME="); found && name != "" {
			return "/dev/" + name, nil
		}
	}
	return "", fmt.Errorf("%s has no DEVNAME", file)
}

// logicalBlock reads the smallest piece in bytes that can be written. A partition
// has its disk's.
func (d folder) logicalBlock() (extents.Bytes, error) {
	queue := "queue"
	partition, err := d.has("partition")
	if err != nil {
		return 0, err
	}
	if partition {
		queue = "../queue"
	}
	n, err := d.number64(filepath.Join(queue, "logical_block_size"))
	if err != nil {
		return 0, err
	}
	if n < dmtable.SectorSize || n > 1<<20 || n&(n-1) != 0 {
		return 0, fmt.Errorf("%s has the impossible logical block size %d", d.dir, n)
	}
	return extents.Bytes(n), nil
}
