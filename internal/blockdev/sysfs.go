// Package blockdev finds the sectors that hold a file's bytes: from the device that
// a file system is mounted from, through that device's own table, to the base
// devices exactly one layer below. It is the only place where an address of a
// file system becomes an address of a device, so it refuses what it does not
// understand, and it writes nothing.
package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"dmloop/dmtable"
	"dmloop/extents"
)

// device is a block device's folder in sysfs.
type device struct {
	number dmtable.Device
	dir    string // resolved, so its parent is the disk of a partition
}

// openDevice finds the device under sysfs, which is /sys except in tests.
func openDevice(sysfs string, number dmtable.Device) (device, error) {
	link := filepath.Join(sysfs, "dev", "block", number.String())
	dir, err := filepath.EvalSymlinks(link)
	if errors.Is(err, fs.ErrNotExist) {
		return device{}, fmt.Errorf("%s is no block device of this machine (no %s): %w", number, link, fs.ErrNotExist)
	}
	if err != nil {
		return device{}, err
	}
	return device{number: number, dir: dir}, nil
}

// name is the kernel's name of the device, such as "dm-0" or "vda1".
func (d device) name() string { return filepath.Base(d.dir) }

// has reports whether the device's folder has this file or folder.
func (d device) has(name string) (bool, error) {
	_, err := os.Stat(filepath.Join(d.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// text reads a file that holds one line.
func (d device) text(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(d.dir, name))
	return strings.TrimSuffix(string(text), "\n"), err
}

// number64 reads a file that holds one decimal number.
func (d device) number64(name string) (uint64, error) {
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
func (d device) path() (string, error) {
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
func (d device) logicalBlock() (extents.Bytes, error) {
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
