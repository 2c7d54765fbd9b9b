package loopdev

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/ioctl"
)

// Attached is a loop device in use and what the kernel has open for it. The path that
// sysfs shows means something in one mount namespace only; numbers do in all.
type Attached struct {
	Path   string         // of its node
	Device dmtable.Device // file system of the file
	Inode  uint64         // the file
	Block  dmtable.Device // the block device that it stands on instead of a file; major 0 for none
}

var getStatus = ioctl.Request{Number: unix.LOOP_GET_STATUS64, Name: "LOOP_GET_STATUS64"}

// List returns the loop devices in use. Those that the caller may not open are left out.
func List() ([]Attached, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var found []Attached
	for _, file := range files {
		path := filepath.Join("/dev", filepath.Base(filepath.Dir(filepath.Dir(file))))
		a, err := status(path)
		switch {
		case err == nil:
			found = append(found, a)
		case !errors.Is(err, unix.ENXIO) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission):
			return found, err // the others were detached meanwhile, or are not ours to ask
		}
	}
	return found, nil
}

func status(path string) (Attached, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return Attached{}, err
	}
	defer f.Close()
	var info unix.LoopInfo64
	if err := ioctl.Pointer(int(f.Fd()), getStatus, &info); err != nil {
		return Attached{}, err
	}
	return Attached{Path: path, Device: dmtable.DeviceOf(info.Device), Inode: info.Inode, Block: dmtable.DeviceOf(info.Rdevice)}, nil
}
