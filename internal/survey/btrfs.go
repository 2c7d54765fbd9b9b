package survey

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/blockdev"
	"dmloop/internal/btrfs"
	"dmloop/internal/fault"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
)

// HostLayout returns the device that the file's layout speaks of, and the layout
// in offsets on it. Only on btrfs they are not what the file itself says: its
// files have an anonymous device number, and FIEMAP gives addresses in a space of
// the file system's own.
func (s Surveyor) HostLayout(img *image.Image, f File, sealed bool, file extents.Layout) (dmtable.Device, extents.Layout, []extents.Problem, error) {
	if !fstype.Of(f.Facts.Filesystem).OwnAddresses {
		return f.Facts.Device, file, nil, nil
	}
	fs, chunks, err := readBtrfs(img, f.Path)
	if err != nil {
		return dmtable.Device{}, extents.Layout{}, nil, err
	}
	problems := btrfs.Problems(file, btrfs.Facts{NoCOW: f.Facts.NoCOW(), Sealed: sealed, Filesystem: fs, Chunks: chunks})
	if len(problems) > 0 {
		return dmtable.Device{}, extents.Layout{}, problems, nil
	}
	dev, err := btrfsDevice(s.Sysfs, fs)
	if err != nil {
		return dmtable.Device{}, extents.Layout{}, nil, err
	}
	translated, err := btrfs.Translate(file, chunks, fs.Device)
	return dev, translated, nil, err
}

// readBtrfs reads what the addresses of btrfs mean there.
func readBtrfs(img *image.Image, path string) (btrfs.Filesystem, []btrfs.Chunk, error) {
	fs, err := btrfs.ReadFilesystem(img.File())
	if err != nil {
		return btrfs.Filesystem{}, nil, err
	}
	chunks, err := btrfs.ReadChunks(img.File())
	if errors.Is(err, unix.EPERM) {
		err = &fault.Error{Class: fault.NotPermitted, Subject: path, Message: "reading where btrfs keeps the file needs root", Remedy: fault.Permission(fault.CapAdmin), Err: err}
	}
	return fs, chunks, err
}

// btrfsDevice finds the block device of a btrfs file system on one device in
// sysfs: the path that btrfs remembers may be an old name of another device.
func btrfsDevice(sysfs string, fs btrfs.Filesystem) (dmtable.Device, error) {
	dir := filepath.Join(sysfs, "fs/btrfs", blockdev.FormatUUID(fs.UUID), "devices")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return dmtable.Device{}, fmt.Errorf("the device of the btrfs file system: %w", err)
	}
	if len(entries) != 1 {
		return dmtable.Device{}, fmt.Errorf("%s names %d devices instead of one", dir, len(entries))
	}
	text, err := os.ReadFile(filepath.Join(dir, entries[0].Name(), "dev"))
	if err != nil {
		return dmtable.Device{}, fmt.Errorf("the device of the btrfs file system: %w", err)
	}
	return dmtable.ParseDevice(strings.TrimSpace(string(text)))
}

// OnHost returns a layout of the file at path with offsets on the host device, whatever
// else is asked of an image there.
func OnHost(img *image.Image, path, filesystem string, l extents.Layout) (extents.Layout, error) {
	if !fstype.Of(filesystem).OwnAddresses {
		return l, nil
	}
	fs, chunks, err := readBtrfs(img, path)
	if err != nil {
		return extents.Layout{}, fault.Wrap(path, "", err)
	}
	problems := btrfs.Problems(l, btrfs.Facts{NoCOW: true, Sealed: true, Filesystem: fs, Chunks: chunks})
	if len(problems) > 0 {
		return extents.Layout{}, fault.Refuse(path, problems)
	}
	translated, err := btrfs.Translate(l, chunks, fs.Device)
	return translated, fault.Wrap(path, "", err)
}
