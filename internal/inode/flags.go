// Package inode reads and changes what the kernel keeps of one inode besides its data,
// through an open descriptor: its flags, the pin of f2fs, leases, and whether reads go
// past the page cache. It is the only place of these calls and knows nothing of why they
// are made.
package inode

import (
	"errors"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"

	"dmloop/internal/ioctl"
)

// Flags of an inode, FS_*_FL in include/uapi/linux/fs.h: chattr(1)'s.
const (
	Compress    = 0x00000004
	Immutable   = 0x00000010
	Encrypt     = 0x00000800
	JournalData = 0x00004000
	Extents     = 0x00080000
	Verity      = 0x00100000
	NoCOW       = 0x00800000 // f2fs shows its pin with it
	DAX         = 0x02000000
	Casefold    = 0x40000000 // of a folder: names are the same in upper and lower case
)

// Extended flags of an inode, FS_XFLAG_* in include/uapi/linux/fs.h.
const (
	XRealtime    = 0x00000001 // the data lies on the real-time device of xfs
	XRTInherit   = 0x00000100 // of a folder: its files get XRealtime
	XProjInherit = 0x00000200 // of a folder: its files belong to its project
	XNoDefrag    = 0x00002000
	XDAX         = 0x00008000
)

// longSize is sizeof(long), which some numbers contain although the kernel moves an int.
const longSize = bits.UintSize / 8

// fsxattr is struct fsxattr of include/uapi/linux/fs.h.
type fsxattr struct {
	XFlags, ExtSize, NExtents, ProjID, CowExtSize uint32
	_                                             [8]byte
}

const fsxattrSize = 28

var (
	getFlags   = ioctl.IOR('f', 1, longSize, "FS_IOC_GETFLAGS")
	setFlags   = ioctl.IOW('f', 2, longSize, "FS_IOC_SETFLAGS")
	getVersion = ioctl.IOR('v', 1, longSize, "FS_IOC_GETVERSION")
	getXattr   = ioctl.IOR('X', 31, fsxattrSize, "FS_IOC_FSGETXATTR")
	setXattr   = ioctl.IOW('X', 32, fsxattrSize, "FS_IOC_FSSETXATTR")
)

// word is the argument of a request that moves an int. It has room for the long that
// the number promises: FUSE servers fill all of it.
type word [2]uint32

func get(f *os.File, request ioctl.Request) (uint32, error) {
	var w word
	err := ioctl.Pointer(int(f.Fd()), request, &w)
	return w[0], err
}

func set(f *os.File, request ioctl.Request, value uint32) error {
	return ioctl.Pointer(int(f.Fd()), request, &word{value})
}

// Flags returns the inode's flags. The error is an *ioctl.Error.
func Flags(f *os.File) (uint32, error) { return get(f, getFlags) }

// ChangeFlags sets some flags of the inode and clears others, unless it is so already.
// The error is an *ioctl.Error.
func ChangeFlags(f *os.File, on, off uint32) error {
	flags, err := Flags(f)
	if err != nil {
		return err
	}
	want := flags&^off | on
	if want == flags {
		return nil
	}
	return set(f, setFlags, want)
}

// XFlags returns the inode's extended flags. The error is an *ioctl.Error.
func XFlags(f *os.File) (uint32, error) {
	var x fsxattr
	err := ioctl.Pointer(int(f.Fd()), getXattr, &x)
	return x.XFlags, err
}

// ChangeXFlags sets some extended flags of the inode and clears others, unless it is so
// already. The error is an *ioctl.Error.
func ChangeXFlags(f *os.File, on, off uint32) error {
	var x fsxattr
	if err := ioctl.Pointer(int(f.Fd()), getXattr, &x); err != nil {
		return err
	}
	want := x.XFlags&^off | on
	if want == x.XFlags {
		return nil
	}
	x.XFlags = want
	return ioctl.Pointer(int(f.Fd()), setXattr, &x)
}

// Generation returns the generation of the inode's number: another file that gets the
// number later has another one. The error is an *ioctl.Error.
func Generation(f *os.File) (uint32, error) { return get(f, getVersion) }

// NotSupported reports whether err says that the file system does not know the request:
// ENOTTY by rule, EOPNOTSUPP and EINVAL from FUSE, overlayfs and others, ENOSYS from old
// FUSE servers.
func NotSupported(err error) bool {
	return errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS)
}
