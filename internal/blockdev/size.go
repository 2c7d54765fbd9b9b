package blockdev

import "dmloop/dmtable"

// DeviceSize returns the device's size in sectors. Sysfs is /sys except in tests. A
// device that is not there wraps fs.ErrNotExist.
func DeviceSize(sysfs string, number dmtable.Device) (dmtable.Sectors, error) {
	d, err := openDevice(sysfs, number)
	if err != nil {
		return 0, err
	}
	n, err := d.number64("size")
	return dmtable.Sectors(n), err
}
