package image

import (
	"errors"
	"fmt"
	"math/bits"

	"dmloop/internal/ioctl"

	"golang.org/x/sys/unix"
)

// Inode flags of FS_IOC_GETFLAGS that decide (FS_*_FL in linux/fs.h).
const (
	flagCompress    = 0x00000004
	flagImmutable   = 0x00000010
	flagEncrypt     = 0x00000800
	flagJournalData = 0x00004000
	flagExtents     = 0x00080000
	flagVerity      = 0x00100000
	flagNoCOW       = 0x00800000
	flagDAX         = 0x02000000
)

// Flags of FS_IOC_FSGETXATTR (FS_XFLAG_* in linux/fs.h).
const (
	xflagRealtime = 0x00000001
	xflagDAX      = 0x00008000
)

// longSize is sizeof(long), which some request numbers contain although the
// kernel moves an int.
const longSize = bits.UintSize / 8

var (
	getFlags   = ioctl.Request{Number: unix.FS_IOC_GETFLAGS, Name: "FS_IOC_GETFLAGS"}
	getXattr   = ioctl.Request{Number: 0x801c581f, Name: "FS_IOC_FSGETXATTR"} // _IOR('X', 31, struct fsxattr)
	f2fsGetPin = ioctl.Request{Number: 0x8004f50e, Name: "F2FS_IOC_GET_PIN_FILE"}
)

// fsxattr is struct fsxattr of linux/fs.h.
type fsxattr struct {
	Xflags     uint32
	Extsize    uint32
	Nextents   uint32
	Projid     uint32
	Cowextsize uint32
	_          [8]byte
}

func (i *Image) statx(mask int) (unix.Statx_t, error) {
	var st unix.Statx_t
	_, err := retry(func() (struct{}, error) {
		return struct{}{}, unix.Statx(i.fd(), "", unix.AT_EMPTY_PATH, mask, &st)
	})
	if err != nil {
		return st, fmt.Errorf("%s: statx: %w", i.Path(), err)
	}
	return st, nil
}

// getWord makes a request that returns an int, in a buffer with room for the long
// that the request's number promises: FUSE servers fill all of it.
func (i *Image) getWord(req ioctl.Request) (uint32, error) {
	var word [2]uint32
	err := ioctl.Pointer(i.fd(), req, &word)
	return word[0], err
}

func (i *Image) wrap(err error) error { return fmt.Errorf("%s: %w", i.Path(), err) }

// unsupported reports whether err says that the file system does not know the
// request: ENOTTY by rule, EOPNOTSUPP and EINVAL from FUSE, overlayfs and others,
// ENOSYS from old FUSE servers.
func unsupported(err error) bool {
	return errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS)
}

func (i *Image) getFSXattr() (fsxattr, error) {
	var x fsxattr
	err := ioctl.Pointer(i.fd(), getXattr, &x)
	return x, err
}
