package image

import (
	"encoding/binary"

	"dmloop/internal/ioctl"
)

// btrfsFSInfo takes struct btrfs_ioctl_fs_info_args (linux/btrfs.h).
var btrfsFSInfo = ioctl.IOR(0x94, 31, btrfsFSInfoSize, "BTRFS_IOC_FS_INFO")

const (
	btrfsFSInfoSize    = 1024
	btrfsFSInfoDevices = 8 // offset of num_devices
)

// btrfsDevices returns the number of devices of the file system.
func (i *Image) btrfsDevices() (int, error) {
	buf := make([]byte, btrfsFSInfoSize)
	if err := ioctl.Buffer(i.fd(), btrfsFSInfo, buf); err != nil {
		return 0, err
	}
	return int(binary.NativeEndian.Uint64(buf[btrfsFSInfoDevices:])), nil
}
