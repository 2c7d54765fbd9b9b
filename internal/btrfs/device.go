package btrfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"

	"dmloop/extents"
	"dmloop/internal/ioctl"
)

// The requests take struct btrfs_ioctl_fs_info_args and struct btrfs_ioctl_dev_info_args
// of linux/btrfs.h:
//
//	fs_info:  __u64 max_id, num_devices; __u8 fsid[16]; ...        offsets 0, 8, 16
//	dev_info: __u64 devid; __u8 uuid[16]; __u64 bytes_used,
//	          total_bytes, unused[379]; __u8 path[1024];           offsets 0, 8, 24, 32, 40, 3072
var (
	fsInfo  = ioctl.IOR(0x94, 31, fsInfoSize, "BTRFS_IOC_FS_INFO")
	devInfo = ioctl.IOWR(0x94, 30, devInfoSize, "BTRFS_IOC_DEV_INFO")
)

const (
	fsInfoSize  = 1024
	devInfoSize = 4096
	devInfoPath = 3072
)

// Filesystem is what btrfs says about itself.
type Filesystem struct {
	UUID    [16]byte
	Devices int    // number of devices
	Device  Device // the device, when there is one only
}

// Device is one device of a btrfs file system.
type Device struct {
	ID   uint64
	Size extents.Bytes
	Path string // as btrfs remembers it; the name may be an old one
}

// ReadFilesystem asks the file system on which f is. btrfs gives files an
// anonymous device number, so this is how the host device is found. It fails
// with ENODEV when the device is missing.
func ReadFilesystem(f *os.File) (Filesystem, error) {
	out, err := readFilesystem(func(req ioctl.Request, buf []byte) error { return ioctl.Buffer(int(f.Fd()), req, buf) })
	if err != nil {
		return Filesystem{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return out, nil
}

func readFilesystem(call func(req ioctl.Request, buf []byte) error) (Filesystem, error) {
	ne := binary.NativeEndian
	info := make([]byte, fsInfoSize)
	if err := call(fsInfo, info); err != nil {
		return Filesystem{}, err
	}
	maxID, devices := ne.Uint64(info), ne.Uint64(info[8:])
	if devices == 0 || devices > 1<<16 {
		return Filesystem{}, fmt.Errorf("btrfs says that it has %d devices", devices)
	}
	out := Filesystem{UUID: [16]byte(info[16:32]), Devices: int(devices)}
	if devices > 1 {
		return out, nil
	}
	// The only device has the greatest id: what was removed leaves no mark.
	dev := make([]byte, devInfoSize)
	ne.PutUint64(dev, maxID)
	if err := call(devInfo, dev); err != nil {
		return Filesystem{}, err
	}
	path, _, _ := bytes.Cut(dev[devInfoPath:], []byte{0})
	out.Device = Device{ID: ne.Uint64(dev), Size: extents.Bytes(ne.Uint64(dev[32:])), Path: string(path)}
	return out, nil
}
