package blockdev

import (
	"path/filepath"
	"slices"
	"strings"

	"dmloop/dmtable"
)

// Removable reports whether a device is, or is a partition of, a disk that is made to be taken
// away: its medium can be changed, it is an SD card, or it hangs on USB. Sysfs is /sys except in
// tests. What is on device-mapper is not looked through.
func Removable(sysfs string, number dmtable.Device) (bool, error) {
	d, err := openFolder(sysfs, number)
	if err != nil {
		return false, err
	}
	disk, _, err := d.disk()
	if err != nil {
		return false, err
	}
	medium, err := disk.number64("removable")
	if err != nil {
		return false, err
	}
	card, _ := disk.text("device/type") // which only some have
	return medium != 0 || card == "SD" || strings.Contains(disk.dir, "/usb"), nil
}

// NodePath returns the path by which people know a block device: of a device-mapper device the
// one in /dev/mapper. Sysfs is /sys except in tests.
func NodePath(sysfs string, number dmtable.Device) (string, error) {
	d, err := openFolder(sysfs, number)
	if err != nil {
		return "", err
	}
	if name, err := d.text("dm/name"); err == nil {
		return "/dev/mapper/" + name, nil
	}
	return d.path()
}

// VolumeGroups returns the names of the volume groups of LVM of which a logical volume is live,
// sorted. Sysfs is /sys except in tests.
func VolumeGroups(sysfs string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(sysfs, "block/dm-*"))
	if err != nil {
		return nil, err
	}
	var groups []string
	for _, dir := range found {
		d := folder{dir: dir}
		uuid, err := d.text("dm/uuid")
		if err != nil || !strings.HasPrefix(uuid, "LVM-") {
			continue // gone meanwhile, or another's
		}
		name, err := d.text("dm/name")
		if err != nil {
			continue
		}
		if group := groupOf(name); group != "" && !slices.Contains(groups, group) {
			groups = append(groups, group)
		}
	}
	slices.Sort(groups)
	return groups, nil
}

// groupOf returns the volume group in the name of a logical volume's device: GROUP-VOLUME, where
// a dash within either is doubled (dm_build_dm_name of libdevmapper).
func groupOf(name string) string {
	for i := 0; i < len(name); i++ {
		if name[i] != '-' {
			continue
		}
		if i+1 < len(name) && name[i+1] == '-' {
			i++
			continue
		}
		return strings.ReplaceAll(name[:i], "--", "-")
	}
	return ""
}
