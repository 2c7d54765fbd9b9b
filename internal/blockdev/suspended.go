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
	return suspended(filepath.Join(sysfs, "dev/block", number.String()), suspendedDepth)
}

func suspended(dir string, depth int) (string, bool) {
	d := device{dir: dir}
	if state, err := d.text("dm/suspended"); err == nil && state == "1" {
		if name, err := d.text("dm/name"); err == nil {
			return name, true
		}
		return filepath.Base(dir), true
	}
	below, _ := filepath.Glob(filepath.Join(dir, "slaves", "*"))
	for _, b := range below {
		if depth == 0 {
			return "", false
		}
		if name, found := suspended(b, depth-1); found {
			return name, true
		}
	}
	return "", false
}
