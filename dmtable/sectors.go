package dmtable

import "fmt"

// SectorSize is the length of a device-mapper sector in bytes, whatever the
// logical block size of the device is (SECTOR_SIZE in linux/blk_types.h).
const SectorSize = 512

// Sectors counts 512-byte sectors: a length, or an address on a block device.
type Sectors uint64

// Device names a block device by its numbers, as device-mapper tables do.
type Device struct {
	Major, Minor uint32
}

// String returns "major:minor" in decimal.
func (d Device) String() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// Segment is a piece of a base device, in 512-byte sectors.
type Segment struct {
	Device Device
	Start  Sectors // first sector on Device
	Length Sectors // at least 1
}
