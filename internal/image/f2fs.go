package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"dmloop/dmtable"
	"dmloop/internal/blockdev"
	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

// Places in struct f2fs_super_block (linux/f2fs_fs.h, unchanged from 4.10 to 7.3),
// little-endian and packed, which lies 1024 bytes into the device:
//
//	__le32 magic;                       0
//	...
//	struct f2fs_device devs[8];      2201
//
//	struct f2fs_device {
//		__u8 path[64];                  0
//		__le32 total_segments;         64
//	};                                /* 68 */
const (
	f2fsSuperOffset = 1024
	f2fsMagicOffset = 0
	f2fsDevsOffset  = 2201
	f2fsDevSize     = 68
	f2fsMaxDevices  = 8
	f2fsSuperSize   = f2fsDevsOffset + f2fsMaxDevices*f2fsDevSize
)

// f2fsDevices counts the devices in the superblock on the mounted device: neither
// mount options nor sysfs name them. Reading it needs permission for the device.
func f2fsDevices(m Mount, dev dmtable.Device) DeviceUse {
	unknown := func(err error) DeviceUse { return DeviceUse{Unknown: err.Error()} }
	f, err := openDevice(m.Source, dev)
	if err != nil {
		return unknown(err)
	}
	defer f.Close()
	super := make([]byte, f2fsSuperSize)
	if _, err := f.ReadAt(super, f2fsSuperOffset); err != nil {
		return unknown(err)
	}
	count, err := parseF2FSDevices(super)
	if err != nil {
		return unknown(fmt.Errorf("%s: %w", f.Name(), err))
	}
	return DeviceUse{Count: count}
}

// parseF2FSDevices counts the devices that a superblock names. One that names none
// is alone on its device.
func parseF2FSDevices(super []byte) (int, error) {
	if len(super) < f2fsSuperSize {
		return 0, fmt.Errorf("f2fs superblock of %d bytes is too short", len(super))
	}
	if magic := binary.LittleEndian.Uint32(super[f2fsMagicOffset:]); magic != unix.F2FS_SUPER_MAGIC {
		return 0, fmt.Errorf("f2fs superblock has magic 0x%x", magic)
	}
	count := 0
	for i := range f2fsMaxDevices {
		if super[f2fsDevsOffset+i*f2fsDevSize] != 0 {
			count++
		}
	}
	return max(count, 1), nil
}

// SyncDevice makes durable what the file system of m has written to its device dev so far,
// its tables above all, without having it write more.
func SyncDevice(m Mount, dev dmtable.Device) error {
	f, err := openDevice(m.Source, dev)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// openDevice opens the block device dev for reading: at the path it was mounted
// from, or under the kernel's name for it, whichever still is that device.
func openDevice(source string, dev dmtable.Device) (*os.File, error) {
	paths := []string{source}
	if name, err := blockdev.KernelName("/sys", dev); err == nil {
		paths = append(paths, filepath.Join("/dev", name))
	}
	err := error(fmt.Errorf("no device node of %v was found", dev))
	for _, path := range paths {
		f, openErr := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if openErr != nil {
			err = openErr
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && dmtable.DeviceOf(st.Rdev) == dev {
			return f, nil
		}
		f.Close()
	}
	return nil, err
}

// defaultTries is DEF_GC_FAILED_PINNED_FILES of fs/f2fs/gc.h.
const defaultTries = 2048

// PinTries returns how often f2fs's garbage collector met the pinned image, and the
// number of times after which it drops the pin: gc_pin_file_thresh of the mount.
func (i *Image) PinTries(dev dmtable.Device) (tries, limit uint32, err error) {
	tries, err = inode.F2FSPinFailures(i.file)
	if err != nil || tries == 0 {
		return 0, defaultTries, err
	}
	limit = defaultTries
	name, err := blockdev.KernelName("/sys", dev)
	if err != nil {
		return tries, limit, nil // without sysfs the default is all there is
	}
	if text, err := os.ReadFile(filepath.Join("/sys/fs/f2fs", name, "gc_pin_file_thresh")); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32); err == nil {
			limit = uint32(n)
		}
	}
	return tries, limit, nil
}

// f2fsPin reads the pin. The ioctl's number counts the times that garbage
// collection met the pinned file; whether it is pinned is told by the
// no-copy-on-write attribute (f2fs_ioc_get_pin_file in fs/f2fs/file.c, 7.3).
func (i *Image) f2fsPin(noCOW bool) (F2FSPin, error) {
	failures, err := inode.F2FSPinFailures(i.file)
	if err != nil {
		return F2FSPin{}, err
	}
	return F2FSPin{Pinned: noCOW, Failures: failures}, nil
}
