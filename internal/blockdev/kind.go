package blockdev

import (
	"path/filepath"

	"dmloop/dmtable"
)

// DeviceKind says what a block device is, as far as it matters for who could take it away.
type DeviceKind struct {
	Mapped    bool // a device-mapper device
	Loop      bool
	Partition uint32 // its number; 0 for a whole disk
	Disk      dmtable.Device
	Size      dmtable.Sectors
}

// KindOf reads from sysfs, which is /sys except in tests, what a device is.
func KindOf(sysfs string, number dmtable.Device) (k DeviceKind, err error) {
	d, err := openFolder(sysfs, number)
	if err != nil {
		return k, err
	}
	if k.Mapped, err = d.has("dm"); err != nil {
		return k, err
	}
	if k.Loop, err = d.has("loop"); err != nil {
		return k, err
	}
	if k.Size, err = d.size(); err != nil {
		return k, err
	}
	part, err := d.has("partition")
	if err != nil || !part {
		return k, err
	}
	n, err := d.number64("partition")
	if err != nil {
		return k, err
	}
	k.Partition = uint32(n)
	disk, err := folderAt(filepath.Dir(d.dir))
	k.Disk = disk.number
	return k, err
}
