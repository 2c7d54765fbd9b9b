package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/ioctl"
)

// The requests of linux/loop.h that are made here.
var (
	loopAdd       = ioctl.Request{Number: unix.LOOP_CTL_ADD, Name: "LOOP_CTL_ADD"}
	loopConfigure = ioctl.Request{Number: unix.LOOP_CONFIGURE, Name: "LOOP_CONFIGURE"}
	loopClearFD   = ioctl.Request{Number: unix.LOOP_CLR_FD, Name: "LOOP_CLR_FD"}
	loopStatus    = ioctl.Request{Number: unix.LOOP_GET_STATUS64, Name: "LOOP_GET_STATUS64"}
)

// Loop is a loop device in use and what the kernel has open for it. A path means something
// in one mount namespace only, numbers do in all; where the caller may not ask for the
// numbers they are 0.
type Loop struct {
	Path   string         // of its node
	File   string         // the path of what it lies on, where the device was made
	Device dmtable.Device // file system of the file
	Inode  uint64         // the file
	Block  dmtable.Device // the block device that it stands on instead of a file; major 0 for none
}

// Loops returns the loop devices in use. With an error come those that could be read.
func Loops() (found []Loop, err error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range files {
		d := folder{dir: filepath.Dir(filepath.Dir(file))}
		l := Loop{Path: filepath.Join("/dev", d.name())}
		l.File, _ = d.text("loop/backing_file") // none when it was detached meanwhile
		if asked := l.ask(); !errors.Is(asked, unix.ENXIO) && !errors.Is(asked, fs.ErrNotExist) && !errors.Is(asked, fs.ErrPermission) {
			err = errors.Join(err, asked)
		}
		found = append(found, l)
	}
	return found, err
}

// ask reads the numbers.
func (l *Loop) ask() error {
	f, err := os.OpenFile(l.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var info unix.LoopInfo64
	if err := ioctl.Pointer(int(f.Fd()), loopStatus, &info); err != nil {
		return err
	}
	l.Device, l.Inode, l.Block = dmtable.DeviceOf(info.Device), info.Inode, dmtable.DeviceOf(info.Rdevice)
	return nil
}

// AttachedLoop is a loop device that AttachLoop made. Its node is open.
type AttachedLoop struct {
	Number dmtable.Device
	file   *os.File
}

// mostLoops bounds how many loop devices are tried.
const mostLoops = 256

// AttachLoop attaches the file to the first loop device that is free, with direct I/O
// where the file system has that, for the boot that cannot map its image: nowhere else is
// the loop driver used. The kernel keeps the file open from then on.
func AttachLoop(file *os.File, readOnly bool) (*AttachedLoop, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("the loop driver: %w", err)
	}
	defer control.Close()
	for number := range mostLoops {
		// Makes the device unless it is there.
		if err := ioctl.Value(int(control.Fd()), loopAdd, uintptr(number)); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, err
		}
		l, err := attachTo(number, file, readOnly)
		if !errors.Is(err, unix.EBUSY) {
			return l, err
		}
	}
	return nil, fmt.Errorf("%d loop devices are in use: %w", mostLoops, unix.EBUSY)
}

// attachTo configures one device.
func attachTo(number int, file *os.File, readOnly bool) (*AttachedLoop, error) {
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
		if err = ioctl.Pointer(int(loop.Fd()), loopConfigure, &config); !errors.Is(err, unix.EINVAL) {
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
	return &AttachedLoop{Number: dmtable.DeviceOf(st.Rdev), file: loop}, nil
}

// Detach gives the device back.
func (l *AttachedLoop) Detach() error {
	return errors.Join(ioctl.Value(int(l.file.Fd()), loopClearFD, 0), l.file.Close())
}

// Close leaves the device attached.
func (l *AttachedLoop) Close() error { return l.file.Close() }
