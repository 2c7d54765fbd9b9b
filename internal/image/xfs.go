package image

import (
	"encoding/binary"

	"dmloop/internal/ioctl"
)

// xfsGeometry takes struct xfs_fsop_geom (fs/xfs/libxfs/xfs_fs.h; Linux 5.2).
var xfsGeometry = ioctl.IOR('X', 126, xfsGeometrySize, "XFS_IOC_FSGEOMETRY")

const (
	xfsGeometrySize   = 256
	xfsGeometryFlags  = 92      // offset of flags in struct xfs_fsop_geom
	xfsGeometryShared = 1 << 20 // XFS_FSOP_GEOM_FLAGS_REFLINK
)

// xfsReflink reports whether the file system can share blocks (mkfs -m reflink).
func (i *Image) xfsReflink() (bool, error) {
	buf := make([]byte, xfsGeometrySize)
	if err := ioctl.Buffer(i.fd(), xfsGeometry, buf); err != nil {
		return false, err
	}
	return binary.NativeEndian.Uint32(buf[xfsGeometryFlags:])&xfsGeometryShared != 0, nil
}

// xfsDataDevices counts the devices that hold file data: the mounted one and the
// real-time device. A file on a file system with a real-time device lies on one of
// them as a whole, and FIEMAP does not say on which.
func xfsDataDevices(m Mount) int {
	if m.superValue("rtdev") != "" {
		return 2
	}
	return 1
}
