package blockdev

import (
	"path/filepath"
	"strings"

	"dmloop/dmtable"
	"dmloop/internal/dm"
)

// walk reads devices below one another.
type walk struct {
	sysfs string
	src   TableSource
}

// table reads the state and the active table of a device; mapped is false when it is
// no device-mapper device.
func (w walk) table(d folder) (info dm.Info, table dmtable.Table, mapped bool, err error) {
	if mapped, err = d.has("dm"); err != nil || !mapped {
		return info, nil, mapped, err
	}
	if w.src == nil {
		return info, nil, mapped, ErrNoTables
	}
	info, table, err = w.src.State(dm.ByDevice(d.number))
	return info, table, mapped, err
}

// disk returns the disk of a partition, and where the partition begins on it. Any
// other device is its own disk.
func (d folder) disk() (disk folder, start dmtable.Sectors, err error) {
	partition, err := d.has("partition")
	if err != nil || !partition {
		return d, 0, err
	}
	at, err := d.number64("start")
	if err != nil {
		return d, 0, err
	}
	disk, err = folderAt(filepath.Dir(d.dir))
	return disk, dmtable.Sectors(at), err
}

// throughTargets hand every write on to the devices that they name, so that what is
// read-only or gone there is so here.
var throughTargets = map[string]bool{dmtable.Linear: true, dmtable.Striped: true, "crypt": true}

// ReadOnly reports whether nothing may be written to the device: it says so itself,
// or one does that its writes go to. Sysfs is /sys except in tests.
func ReadOnly(sysfs string, src TableSource, number dmtable.Device) (bool, error) {
	d, err := openFolder(sysfs, number)
	if err != nil {
		return false, err
	}
	flag, err := d.number64("ro")
	if err != nil || flag != 0 {
		return flag != 0, err
	}
	_, table, mapped, err := walk{sysfs, src}.table(d)
	if err != nil || !mapped {
		return false, err
	}
	for _, below := range writesGoTo(table) {
		if readOnly, err := ReadOnly(sysfs, src, below); err != nil || readOnly {
			return readOnly, err
		}
	}
	return false, nil
}

// writesGoTo lists the devices that the rows of throughTargets name, each once.
func writesGoTo(table dmtable.Table) (devices []dmtable.Device) {
	seen := map[dmtable.Device]bool{}
	for _, row := range table {
		if !throughTargets[row.Target] {
			continue
		}
		for _, word := range strings.Fields(row.Args) {
			if dev, err := dmtable.ParseDevice(word); err == nil && !seen[dev] {
				seen[dev] = true
				devices = append(devices, dev)
			}
		}
	}
	return devices
}
