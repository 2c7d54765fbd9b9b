// Package loopdev attaches a file to the kernel's loop driver, for the boot that
// cannot map its image: the one place where dmloop uses that driver.
package loopdev

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/ioctl"
)

// The requests of linux/loop.h that this package makes.
var (
	add       = ioctl.Request{Number: unix.LOOP_CTL_ADD, Name: "LOOP_CTL_ADD"}
	configure = ioctl.Request{Number: unix.LOOP_CONFIGURE, Name: "LOOP_CONFIGURE"}
	clearFD   = ioctl.Request{Number: unix.LOOP_CLR_FD, Name: "LOOP_CLR_FD"}
)

// Device is an attached loop device.
type Device struct {
	Path   string
	Number dmtable.Device
	file   *os.File
}

// most bounds how many loop devices are tried.
const most = 256

// Attach attaches the file to the first loop device that is free, with direct I/O
// where the file system has that. The kernel keeps the file open from then on.
func Attach(file *os.File, readOnly bool) (*Device, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("the loop driver: %w", err)
	}
	defer control.Close()
	for number := range most {
		// Makes the device unless it is there.
		if err := ioctl.Value(int(control.Fd()), add, uintptr(number)); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, err
		}
		d, err := try(number, file, readOnly)
		if !errors.Is(err, unix.EBUSY) {
			return d, err
		}
	}
	return nil, fmt.Errorf("%d loop devices are in use: %w", most, unix.EBUSY)
}

// try configures one device.
func try(number int, file *os.File, readOnly bool) (*Device, error) {
	path := fmt.Sprintf("/dev/loop%d", number)
	mode := os.O_RDWR
	var flags uint32
	if readOnly {
		mode, flags = os.O_RDONLY, unix.LO_FLAGS_READ_ONLY
	}
	loop, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	name := file.Name()
	for _, direct := range []uint32{unix.LO_FLAGS_DIRECT_IO, 0} {
		config := unix.LoopConfig{Fd: uint32(file.Fd())}
		config.Info.Flags = flags | direct
		copy(config.Info.File_name[:len(config.Info.File_name)-1], name)
		if err = ioctl.Pointer(int(loop.Fd()), configure, &config); !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), loop.Close())
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(loop.Fd()), &st); err != nil {
		return nil, errors.Join(err, loop.Close())
	}
	return &Device{Path: path, Number: dmtable.DeviceOf(st.Rdev), file: loop}, nil
}

// Detach gives the device back.
func (d *Device) Detach() error {
	return errors.Join(ioctl.Value(int(d.file.Fd()), clearFD, 0), d.file.Close())
}

// Close leaves the device attached.
func (d *Device) Close() error { return d.file.Close() }
