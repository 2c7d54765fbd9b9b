package inode

import (
	"os"

	"dmloop/internal/ioctl"
)

// Requests of include/uapi/linux/f2fs.h, with a __u32.
var (
	setPinFile = ioctl.IOW(0xf5, 13, 4, "F2FS_IOC_SET_PIN_FILE")
	getPinFile = ioctl.IOR(0xf5, 14, 4, "F2FS_IOC_GET_PIN_FILE")
)

// SetF2FSPin pins a file's blocks on f2fs, or ends that. The blocks of a pinned file must
// be allocated after it (Documentation/filesystems/f2fs.rst). The error is an
// *ioctl.Error: EFBIG where newer kernels refuse a file that has blocks.
func SetF2FSPin(f *os.File, on bool) error {
	var value uint32
	if on {
		value = 1
	}
	return set(f, setPinFile, value)
}

// F2FSPinFailures returns how often the garbage collection of f2fs found the pinned file
// in its way. It fails on a file that was never pinned; a pin that was dropped since shows
// in the flag NoCOW only. The error is an *ioctl.Error.
func F2FSPinFailures(f *os.File) (uint32, error) { return get(f, getPinFile) }
