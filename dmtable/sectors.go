package dmtable

import (
	"fmt"
	"strconv"
	"strings"
)

// SectorSize is the length of a device-mapper sector in bytes, whatever the
// logical block size of the device is (SECTOR_SIZE in linux/blk_types.h).
const SectorSize = 512

// MaxSectors is the largest length or end address in sectors that this package
// accepts. The kernel counts the bytes of a device in a signed 64-bit number,
// so everything up to MaxSectors can be turned into bytes without overflow.
const MaxSectors Sectors = 1<<54 - 1

// Sectors counts 512-byte sectors: a length, or an address on a block device.
type Sectors uint64

// Device names a block device by its numbers, as device-mapper tables do.
type Device struct {
	Major, Minor uint32
}

// The kernel's dev_t has 12 bits for the major and 20 for the minor number.
const (
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

// DeviceOf returns the device with this number, in the encoding that stat(2) gives st_dev
// and st_rdev in (makedev(3)): 64 bits, of which some architectures have the lower 32.
func DeviceOf[T uint32 | uint64](number T) Device {
	n := uint64(number)
	return Device{
		Major: uint32(n>>8&0xfff | n>>32&0xfffff000),
		Minor: uint32(n&0xff | n>>12&0xffffff00),
	}
}

// String returns "major:minor" in decimal.
func (d Device) String() string { return string(d.append(nil)) }

func (d Device) append(b []byte) []byte {
	b = strconv.AppendUint(b, uint64(d.Major), 10)
	b = append(b, ':')
	return strconv.AppendUint(b, uint64(d.Minor), 10)
}

func (d Device) valid() bool { return d.Major <= maxMajor && d.Minor <= maxMinor }

// ParseDevice reads "major:minor" in decimal, as String prints it. A path, a
// sign, a blank, a major above 4095 or a minor above 1048575 is an error.
func ParseDevice(s string) (Device, error) {
	major, minor, found := strings.Cut(s, ":")
	if !found {
		return Device{}, fmt.Errorf("device %q is not major:minor", s)
	}
	ma, err := strconv.ParseUint(major, 10, 32)
	if err != nil || ma > maxMajor {
		return Device{}, fmt.Errorf("device %q: major number is not in 0-%d", s, maxMajor)
	}
	mi, err := strconv.ParseUint(minor, 10, 32)
	if err != nil || mi > maxMinor {
		return Device{}, fmt.Errorf("device %q: minor number is not in 0-%d", s, maxMinor)
	}
	return Device{Major: uint32(ma), Minor: uint32(mi)}, nil
}

// Segment is a piece of a base device, in 512-byte sectors.
type Segment struct {
	Device Device
	Start  Sectors // first sector on Device
	Length Sectors // at least 1
}

// End returns the first sector after the segment. It does not overflow when
// check has found the segment valid.
func (s Segment) End() Sectors { return s.Start + s.Length }

// check returns what is wrong with the segment, or "".
func (s Segment) check() string {
	switch {
	case s.Length == 0:
		return "has length 0"
	case s.Start > MaxSectors || s.Length > MaxSectors-s.Start:
		return "ends beyond the largest possible device"
	case !s.Device.valid():
		return "names an impossible device " + s.Device.String()
	}
	return ""
}

// String returns "major:minor sectors first-last", for messages.
func (s Segment) String() string {
	return fmt.Sprintf("%s sectors %d-%d", s.Device, s.Start, s.Start+s.Length-1)
}
