package dm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/ioctl"
	"dmloop/internal/kernlist"
)

const (
	miscMajor   = 10              // MISC_MAJOR in linux/major.h
	controlName = "device-mapper" // in /proc/misc
)

// Open opens /dev/mapper/control, which it creates when the kernel has
// device-mapper and the node is missing, and checks that it is the control device
// and speaks version 4. A kernel without device-mapper is ErrNoDeviceMapper, a
// missing rights ErrPermission, another version ErrUnsupported.
func Open() (*Conn, error) { return open("/dev/mapper/control", "/proc/misc") }

func open(control, misc string) (*Conn, error) {
	fail := func(err error) (*Conn, error) { return nil, &Error{Op: "open", Name: control, Err: err} }
	file, err := openControl(control)
	if errors.Is(err, unix.ENOENT) {
		if err = makeControl(control, misc); err != nil {
			return fail(err)
		}
		file, err = openControl(control)
	}
	if err != nil {
		return fail(err)
	}
	if err := checkControl(file, misc); err != nil {
		file.Close()
		return fail(err)
	}
	c := &Conn{file: file}
	c.exchange = func(req ioctl.Request, buf []byte) error { return ioctl.Buffer(int(file.Fd()), req, buf) }
	if _, err := c.Version(); err != nil {
		file.Close()
		return nil, err
	}
	return c, nil
}

// openControl opens the node if it is a misc character device; anything else is
// not touched. The kernel loads dm-mod by itself when a static node is opened.
func openControl(path string) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || dmtable.DeviceOf(st.Rdev).Major != miscMajor {
		return nil, fmt.Errorf("it is not the device-mapper control device")
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// checkControl compares what was opened with what the kernel says is the control
// device's number.
func checkControl(file *os.File, misc string) error {
	minor, err := controlMinor(misc)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || dmtable.DeviceOf(st.Rdev) != (dmtable.Device{Major: miscMajor, Minor: minor}) {
		return fmt.Errorf("it is not the device-mapper control device, which is %d:%d", miscMajor, minor)
	}
	return nil
}

// makeControl creates the node as udev and devtmpfs would.
func makeControl(path, misc string) error {
	minor, err := controlMinor(misc)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	err = unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(miscMajor, minor)))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// controlMinor reads the control device's minor number from /proc/misc, whose
// lines are "number name".
func controlMinor(misc string) (uint32, error) {
	text, err := os.ReadFile(misc)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		fields := kernlist.Split(strings.TrimSuffix(line, "\n"))
		if len(fields) != 2 || fields[1] != controlName {
			continue
		}
		minor, err := strconv.ParseUint(fields[0], 10, 20)
		if err != nil {
			return 0, fmt.Errorf("%s has the line %q", misc, line)
		}
		return uint32(minor), nil
	}
	return 0, ErrNoDeviceMapper
}
