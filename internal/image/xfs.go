package image

import (
	"encoding/binary"

	"dmloop/internal/ioctl"
)

// xfsGeometry takes struct xfs_fsop_geom (fs/xfs/libxfs/xfs_fs.h; Linux 5.2).
var xfsGeometry = ioctl.IOR('X', 126, xfsGeometrySize, "XFS_IOC_FSGEOMETRY")

const (
	xfsGeometrySize   = 256
	xfsGeometryRT     = 40      // offset of rtblocks in struct xfs_fsop_geom
	xfsGeometryFlags  = 92      // and of flags
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

// xfsHasRealtime reports whether the file system has a real-time section.
func (i *Image) xfsHasRealtime() (bool, error) {
	buf := make([]byte, xfsGeometrySize)
	if err := ioctl.Buffer(i.fd(), xfsGeometry, buf); err != nil {
		return false, err
	}
	return binary.NativeEndian.Uint64(buf[xfsGeometryRT:]) != 0, nil
}
