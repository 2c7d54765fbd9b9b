package pin

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"dmloop/internal/ioctl"
)

// Inode flags of include/uapi/linux/fs.h.
const (
	flagImmutable = 0x00000010 // FS_IMMUTABLE_FL
	flagNoCOW     = 0x00800000 // FS_NOCOW_FL; f2fs shows its pin with it
	xflagNoDefrag = 0x00002000 // FS_XFLAG_NODEFRAG
)

var (
	getFlags    = ioctl.Request{Number: unix.FS_IOC_GETFLAGS, Name: "FS_IOC_GETFLAGS"}
	setFlags    = ioctl.Request{Number: unix.FS_IOC_SETFLAGS, Name: "FS_IOC_SETFLAGS"}
	getXFlags   = ioctl.Request{Number: 0x801c581f, Name: "FS_IOC_FSGETXATTR"} // _IOR('X', 31, struct fsxattr)
	setXFlags   = ioctl.Request{Number: 0x401c5820, Name: "FS_IOC_FSSETXATTR"} // _IOW('X', 32, struct fsxattr)
	f2fsSetPin  = ioctl.Request{Number: 0x4004f50d, Name: "F2FS_IOC_SET_PIN_FILE"}
	f2fsGetPin  = ioctl.Request{Number: 0x8004f50e, Name: "F2FS_IOC_GET_PIN_FILE"}
	errNotThere = errors.New("the flag did not take")
)

// fsxattr is struct fsxattr of include/uapi/linux/fs.h.
type fsxattr struct {
	XFlags, ExtSize, NExtents, ProjID, CowExtSize uint32
	_                                             [8]byte
}

// InForce lists the pins that the file system reports for f, whoever set them, in
// the order in which they are set. An active swap claim is not among them: it is
// proved by other means (package swap).
func InForce(f *os.File, filesystem string) ([]Kind, error) {
	var flags uint32
	if err := ioctl.Pointer(int(f.Fd()), getFlags, &flags); err != nil {
		return nil, fmt.Errorf("reading the inode flags: %w", err)
	}
	var kinds []Kind
	if filesystem == "xfs" {
		var x fsxattr
		if err := ioctl.Pointer(int(f.Fd()), getXFlags, &x); err != nil {
			return nil, fmt.Errorf("reading the xfs inode flags: %w", err)
		}
		if x.XFlags&xflagNoDefrag != 0 {
			kinds = append(kinds, NoDefrag)
		}
	}
	if filesystem == "f2fs" && flags&flagNoCOW != 0 {
		// The ioctl's number counts the collector's failed tries, so only its
		// success says something; the flag above is what a dropped pin clears.
		var tries uint32
		if err := ioctl.Pointer(int(f.Fd()), f2fsGetPin, &tries); err != nil {
			return nil, fmt.Errorf("reading the f2fs pin: %w", err)
		}
		kinds = append(kinds, F2FS)
	}
	if flags&flagImmutable != 0 {
		kinds = append(kinds, Immutable)
	}
	return kinds, nil
}

// put sets or clears one pin and reads it back.
func put(f *os.File, filesystem string, k Kind, on bool) error {
	var err error
	switch k {
	case Immutable:
		err = putFlag(f, flagImmutable, on)
	case NoDefrag:
		err = putXFlag(f, xflagNoDefrag, on)
	case F2FS:
		var v uint32
		if on {
			v = 1
		}
		err = ioctl.Pointer(int(f.Fd()), f2fsSetPin, &v)
	default:
		return fmt.Errorf("pin %q is not an inode flag", k)
	}
	if err != nil {
		return err
	}
	now, err := InForce(f, filesystem)
	if err != nil {
		return err
	}
	for _, have := range now {
		if have == k {
			if on {
				return nil
			}
			return errNotThere
		}
	}
	if on {
		return errNotThere
	}
	return nil
}

func putFlag(f *os.File, flag uint32, on bool) error {
	var flags uint32
	if err := ioctl.Pointer(int(f.Fd()), getFlags, &flags); err != nil {
		return err
	}
	want := flags &^ flag
	if on {
		want |= flag
	}
	if want == flags {
		return nil
	}
	return ioctl.Pointer(int(f.Fd()), setFlags, &want)
}

func putXFlag(f *os.File, flag uint32, on bool) error {
	var x fsxattr
	if err := ioctl.Pointer(int(f.Fd()), getXFlags, &x); err != nil {
		return err
	}
	want := x.XFlags &^ flag
	if on {
		want |= flag
	}
	if want == x.XFlags {
		return nil
	}
	x.XFlags = want
	return ioctl.Pointer(int(f.Fd()), setXFlags, &x)
}
