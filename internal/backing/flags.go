package backing

import (
	"fmt"
	"os"

	"dmloop/internal/ioctl"

	"golang.org/x/sys/unix"
)

// Inode flags that are changed here (FS_*_FL in linux/fs.h).
const (
	flagCompress = 0x00000004
	flagNoCOW    = 0x00800000
)

var (
	getFlagsRequest = ioctl.Request{Number: unix.FS_IOC_GETFLAGS, Name: "FS_IOC_GETFLAGS"}
	setFlagsRequest = ioctl.Request{Number: unix.FS_IOC_SETFLAGS, Name: "FS_IOC_SETFLAGS"}
	f2fsSetPin      = ioctl.Request{Number: 0x4004f50d, Name: "F2FS_IOC_SET_PIN_FILE"} // _IOW(0xf5, 13, __u32)
)

// setFlags gives the inode these flags, if it has not got them already. The kernel reads an
// int, although the number of the request promises a long.
func setFlags(f *os.File, flags uint32) error {
	var now [2]uint32
	if err := ioctl.Pointer(int(f.Fd()), getFlagsRequest, &now); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	if now[0] == flags {
		return nil
	}
	if err := ioctl.Pointer(int(f.Fd()), setFlagsRequest, &[2]uint32{flags}); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return nil
}

// prepare sets what can only be set while the file is empty: it switches inherited
// compression off, on btrfs also copy-on-write, and pins the file on f2fs, where the blocks
// must be allocated after that (f2fs.rst).
func prepare(f *os.File, kind string, flags uint32) error {
	flags &^= flagCompress
	if err := setFlags(f, flags); err != nil {
		return err
	}
	switch kind {
	case "btrfs": // in a step of its own: a file must not go from compressed to +C at once
		return setFlags(f, flags|flagNoCOW)
	case "f2fs":
		pin := uint32(1)
		if err := ioctl.Pointer(int(f.Fd()), f2fsSetPin, &pin); err != nil {
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	return nil
}
