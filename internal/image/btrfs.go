package image

import (
	"encoding/binary"

	"dmloop/internal/ioctl"
)

// btrfsFSInfo is BTRFS_IOC_FS_INFO, _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)
// of 1024 bytes (linux/btrfs.h).
var btrfsFSInfo = ioctl.Request{Number: 0x8400941f, Name: "BTRFS_IOC_FS_INFO"}

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
