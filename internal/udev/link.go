package udev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
)

// isNodeLink says what udev's rules, and this package, let /dev/mapper/NAME point to.
func isNodeLink(target string) bool {
	for _, folder := range []string{"../", "/dev/"} {
		if number, ok := strings.CutPrefix(target, folder+"dm-"); ok {
			return number != "" && strings.Trim(number, "0123456789") == ""
		}
	}
	return false
}

// EnsureLink makes sure that /dev/mapper/NAME of this machine is the device.
func EnsureLink(name string, device dmtable.Device) error { return Local().EnsureLink(name, device) }

// Unlink makes sure that /dev/mapper/NAME of this machine is gone.
func Unlink(name string) error { return Local().Unlink(name) }

// EnsureLink makes sure that DEV/mapper/NAME resolves to the device: it checks what
// udev made, and where that is missing or stale makes the link, and the node when
// there is none. Anything else that stands there is not touched and is an error.
func (h Host) EnsureLink(name string, device dmtable.Device) error {
	path, err := h.mapperPath(name)
	if err != nil {
		return err
	}
	node := fmt.Sprintf("dm-%d", device.Minor)
	if err := ensureNode(filepath.Join(h.Dev, node), device); err != nil {
		return err
	}
	if isNode(path, device, unix.Stat) {
		return nil
	}
	if err := replaceable(path); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // a stale link
		return err
	}
	if err := os.Symlink("../"+node, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if !isNode(path, device, unix.Stat) {
		return fmt.Errorf("%s does not lead to device %s", path, device)
	}
	return nil
}

// Unlink removes DEV/mapper/NAME if it is a link to a device-mapper node that is no
// longer the device of that name, as it is after a removal without udev. It returns
// an error, and leaves it, when anything else stands there.
func (h Host) Unlink(name string) error {
	path, err := h.mapperPath(name)
	if err != nil {
		return err
	}
	target, err := os.Readlink(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := replaceable(path); err != nil {
		return err
	}
	node := filepath.Base(target)
	live, err := os.ReadFile(filepath.Join(h.Sys, "block", node, "dm", "name"))
	if err == nil && strings.TrimSuffix(string(live), "\n") == name {
		return nil // the name is in use again
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return h.removeNode(node)
}

// removeNode removes a node that ensureNode made, once its device is gone. On
// devtmpfs there is nothing to do: there a node never outlives its entry in sysfs.
func (h Host) removeNode(node string) error {
	path := filepath.Join(h.Dev, node)
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != fs.ModeDevice {
		return nil
	}
	if _, err := os.Stat(filepath.Join(h.Sys, "block", node)); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// mapperPath returns the path of the name's link, once the name is known to be a
// single plain file name.
func (h Host) mapperPath(name string) (string, error) {
	if err := dmtable.CheckName(name); err != nil {
		return "", err
	}
	return filepath.Join(h.Dev, "mapper", name), nil
}

// replaceable returns an error unless nothing stands at path, or a link to a
// device-mapper node.
func replaceable(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink == 0 {
		return fmt.Errorf("%s is in the way: it is not a link to a device-mapper device", path)
	}
	target, err := os.Readlink(path)
	if err != nil {
		return err
	}
	if !isNodeLink(target) {
		return fmt.Errorf("%s is in the way: it is a link to %s", path, target)
	}
	return nil
}

// ensureNode makes the device's node where devtmpfs has not.
func ensureNode(path string, device dmtable.Device) error {
	if isNode(path, device, unix.Lstat) {
		return nil
	}
	number := unix.Mkdev(device.Major, device.Minor)
	err := unix.Mknod(path, unix.S_IFBLK|0o600, int(number))
	if err == nil || errors.Is(err, unix.EEXIST) && isNode(path, device, unix.Lstat) {
		return nil
	}
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s is in the way: it is not block device %s", path, device)
	}
	return &fs.PathError{Op: "mknod", Path: path, Err: err}
}

// isNode reports whether path is the device's block node, as stat or lstat sees it.
func isNode(path string, device dmtable.Device, stat func(string, *unix.Stat_t) error) bool {
	var st unix.Stat_t
	return stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK &&
		dmtable.DeviceOf(st.Rdev) == device
}
