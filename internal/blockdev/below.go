package blockdev

import (
	"slices"

	"dmloop/dmtable"
	"dmloop/internal/dm"
)

// Below returns the device-mapper devices on which the host device stands, itself
// first if it is one, then everything that their active tables name, all the way
// down. Sysfs is /sys except in tests. Other devices end the walk and are left out;
// what stands on a partition or a disk is not looked for.
func Below(sysfs string, src TableSource, host dmtable.Device) ([]dmtable.Device, error) {
	var chain []dmtable.Device
	for queue := []dmtable.Device{host}; len(queue) > 0; queue = queue[1:] {
		number := queue[0]
		if slices.Contains(chain, number) {
			continue
		}
		d, err := openFolder(sysfs, number)
		if err != nil {
			return nil, err
		}
		mapped, err := d.has("dm")
		if err != nil {
			return nil, err
		}
		if !mapped {
			continue
		}
		if src == nil {
			return nil, ErrNoTables
		}
		deps, err := src.Deps(dm.ByDevice(number))
		if err != nil {
			return nil, err
		}
		chain = append(chain, number)
		queue = append(queue, deps...)
	}
	return chain, nil
}
