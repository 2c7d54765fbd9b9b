package persist

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/image"
	"dmloop/internal/kernlist"
)

// Paths are the files of a machine that plans are made of; tests have others.
type Paths struct {
	Fstab, Tab, Cmdline string
	// Hooks are the files that show that a maker of initramfs knows dmloop.
	Hooks map[Maker]string
}

// LocalPaths returns the files of this machine.
func LocalPaths(tab string) Paths {
	return Paths{Fstab: "/etc/fstab", Tab: tab, Cmdline: "/proc/cmdline", Hooks: map[Maker]string{
		InitramfsTools: "/usr/share/initramfs-tools/hooks/dmloop",
		Dracut:         "/usr/lib/dracut/modules.d/90dmloop/module-setup.sh",
	}}
}

// makers are the programs of the makers, the preferred one first.
var makers = []struct {
	maker   Maker
	program string
}{{InitramfsTools, "/usr/sbin/update-initramfs"}, {Dracut, "/usr/bin/dracut"}, {Dracut, "/usr/sbin/dracut"}}

// Gather reads the facts about the file system that is mounted at point.
func Gather(point, name string, paths Paths, devices blockdev.Finder) (Facts, error) {
	f := Facts{Point: filepath.Clean(point), Name: name, FstabPath: paths.Fstab, TabPath: paths.Tab}
	device, err := mounted(f.Point, devices)
	if err != nil {
		return f, err
	}
	superblock, err := devices.Filesystem(device)
	if errors.Is(err, fs.ErrPermission) {
		return f, err
	}
	if err != nil {
		return f, &RefusedError{err.Error(), advice.MountableFS}
	}
	f.UUID = superblock.UUID
	if found, err := devices.Find("UUID=" + f.UUID); err != nil || found.Number != device.Number {
		return f, &RefusedError{fmt.Sprintf("the UUID %s does not lead to %s alone", f.UUID, device.Path), advice.UniqueUUID}
	}
	if f.Fstab, _, err = read(paths.Fstab); err != nil {
		return f, err
	}
	if f.Tab, _, err = read(paths.Tab); err != nil {
		return f, err
	}
	if f.KernelRoot, err = kernelRoot(paths.Cmdline); err != nil {
		return f, err
	}
	for _, m := range makers {
		if exists(m.program) && exists(paths.Hooks[m.maker]) {
			f.Maker = m.maker
			break
		}
	}
	partUUID, err := devices.PartUUID(device)
	f.Same = func(source string) bool { return same(source, device, f.UUID, partUUID, devices) }
	return f, err
}

// mounted returns the block device that is mounted at point.
func mounted(point string, devices blockdev.Finder) (blockdev.Device, error) {
	mounts, err := image.Mounts()
	if err != nil {
		return blockdev.Device{}, err
	}
	mounts = slices.DeleteFunc(mounts, func(m image.Mount) bool { return m.Point != point })
	if len(mounts) == 0 {
		return blockdev.Device{}, &RefusedError{point + " is not a mount point", advice.GiveMountPoint}
	}
	mount := mounts[len(mounts)-1]
	device, err := devices.ByNumber(mount.Device)
	if errors.Is(err, blockdev.ErrNotFound) {
		return device, &RefusedError{fmt.Sprintf("the %s at %s is on no block device of its own", mount.Type, point), advice.KeepImagesOn}
	}
	if err == nil && device.Mapped {
		err = &RefusedError{fmt.Sprintf("%s is on device-mapper already (%s)", point, device.Path), advice.CheckImage}
	}
	return device, err
}

// same reports whether a source of fstab is the device.
func same(source string, device blockdev.Device, uuid, partUUID string, devices blockdev.Finder) bool {
	tag, value, found := strings.Cut(source, "=")
	if strings.HasPrefix(source, "/") || !found {
		d, err := devices.Find(source)
		return err == nil && d.Number == device.Number
	}
	value = strings.Trim(value, `"`)
	switch tag {
	case "UUID":
		return strings.EqualFold(value, uuid)
	case "PARTUUID":
		return partUUID != "" && strings.EqualFold(value, partUUID)
	case "LABEL", "PARTLABEL":
		d, err := devices.Find(filepath.Join(devices.Dev, "disk", "by-"+strings.ToLower(tag), value))
		return err == nil && d.Number == device.Number
	}
	return false
}

// kernelRoot returns the value of root= on the kernel command line.
func kernelRoot(path string) (string, error) {
	text, err := os.ReadFile(path)
	root := ""
	for _, word := range kernlist.Split(strings.TrimSuffix(string(text), "\n")) {
		if value, ok := strings.CutPrefix(word, "root="); ok {
			root = value
		}
	}
	return root, err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
