package blockdev

import (
	"path/filepath"

	"dmloop/dmtable"
)

// suspendedDepth bounds how far down the devices below a device are looked at.
const suspendedDepth = 16

// Suspended returns the name of a device-mapper device that is suspended: the device
// itself, or one that it stands on. Whatever has to read or write there waits for its
// resume. The kernel's own files are asked, which answer meanwhile.
func Suspended(sysfs string, number dmtable.Device) (name string, found bool) {
	return folder{dir: filepath.Join(sysfs, "dev/block", number.String())}.suspended(suspendedDepth)
}

func (d folder) suspended(depth int) (string, bool) {
	if state, err := d.text("dm/suspended"); err == nil && state == "1" {
		return d.label(), true
	}
	if depth == 0 {
		return "", false
	}
	below, _ := d.beside("slaves")
	for _, b := range below {
		if name, found := b.suspended(depth - 1); found {
			return name, true
		}
	}
	return "", false
}

// AnySuspended reports whether any device-mapper device is suspended: whoever looks at all
// devices would wait for its resume. Sysfs is /sys except in tests.
func AnySuspended(sysfs string) bool {
	states, _ := filepath.Glob(filepath.Join(sysfs, "block/dm-*"))
	for _, dir := range states {
		if state, err := (folder{dir: dir}).text("dm/suspended"); err == nil && state == "1" {
			return true
		}
	}
	return false
}
