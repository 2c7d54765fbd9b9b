package observe

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/blockdev"
	"dmloop/internal/btrfs"
	"dmloop/internal/dm"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
	"dmloop/internal/record"
)

// Sameness is how surely a file is the image of a record.
type Sameness int

// The answers of Same.
const (
	Other   Sameness = iota // another file
	Untold                  // everything fits, but nothing shows whether it is the same file system
	TheSame                 // the image
)

// Place says more about where a file is that is compared with a record. It is asked only
// where the rest fits.
type Place struct {
	UUID func() (string, error) // of the file system
	// Moved judges a file system of the recorded UUID under another device number, on
	// which the file is.
	Moved func(want record.Image) (Sameness, error)
}

// PlaceOf is the Place of a file of which only the device number is known. On btrfs that
// tells nothing.
func PlaceOf(id image.Identity) Place {
	number := id.Device()
	return Place{
		UUID:  func() (string, error) { return DeviceUUID(number) },
		Moved: func(want record.Image) (Sameness, error) { return moved(want, number) },
	}
}

// placeOf is the Place of an open file.
func placeOf(f *os.File, number dmtable.Device, filesystem string) Place {
	return Place{
		UUID: func() (string, error) { return uuidOf(f, filesystem) },
		Moved: func(want record.Image) (Sameness, error) {
			if fstype.Of(filesystem).OwnAddresses {
				return movedBtrfs(want, f)
			}
			return moved(want, number)
		},
	}
}

// Same compares a file with the image of a record by what no remount changes: inode,
// generation, birth, and the UUID of the file system. The device number decides only
// together with the birth, or where the record has no UUID: a host may come back under
// another number, and another disk under its old one. All of that except for the number is
// the same in a copy of the whole file system, so under another number place has the last
// word. What id does not tell (a zero) is not compared. The error says why the answer is
// Untold, and what to do.
func Same(want record.Image, id image.Identity, place Place) (Sameness, error) {
	if !want.SameElsewhere(id.FileID) {
		return Other, nil
	}
	number := want.Device() == id.Device()
	if number && (want.FSUUID == "" || want.Birth != 0 && want.Birth == id.Birth) {
		return TheSame, nil // to the nanosecond: the disk need not be asked
	}
	if want.FSUUID == "" {
		return Other, nil
	}
	switch have, err := place.UUID(); {
	case err != nil:
		return Untold, fmt.Errorf("the UUID of its file system cannot be read: %w", err)
	case have != want.FSUUID:
		return Other, nil
	case number:
		return TheSame, nil
	}
	return place.Moved(want)
}

// ErrCopies says that a file system of the recorded UUID is there under another device
// number, and that it may as well be a copy of the image's.
var ErrCopies = errors.New("it may be on a copy of the file system")

func copies(want record.Image, format string, args ...any) (Sameness, error) {
	return Untold, fmt.Errorf("%w (UUID %s), a snapshot or a dd of it: %s; unmount and detach the copy, or leave it alone and use the mapping's NAME",
		ErrCopies, want.FSUUID, fmt.Sprintf(format, args...))
}

// moved judges whether the file system on the device number, which has the recorded UUID,
// is the one that was under the recorded number. While that one is mounted there it is
// not. Else it is only when no other device carries this UUID: one that shows the same
// sectors does not count.
func moved(want record.Image, number dmtable.Device) (Sameness, error) {
	mounts, err := image.MountsOf(want.Device())
	if err != nil {
		return copies(want, "cannot tell what is mounted: %v", err)
	}
	uuid, err := DeviceUUID(want.Device())
	conn, dmErr := dm.Open()
	if dmErr == nil {
		defer conn.Close()
	}
	switch same := shows(conn, want.Device()) == shows(conn, number); {
	case errors.Is(err, blockdev.ErrNotFound), errors.Is(err, blockdev.ErrNoFilesystem), err == nil && uuid != want.FSUUID: // gone, or another disk
	case err != nil:
		return copies(want, "the device %s, on which it was, cannot be read: %v", want.Device(), err)
	case len(mounts) > 0:
		return Other, nil
	case !same:
		return copies(want, "the device %s, on which it was, still carries it", want.Device())
	}
	carriers, err := blockdev.Local().Carriers(want.FSUUID)
	if err != nil {
		return copies(want, "cannot tell which devices carry it: %v", err)
	}
	here := shows(conn, number)
	for _, c := range carriers {
		if shows(conn, c.Number) != here {
			return copies(want, "%s carries it too", c.Path)
		}
	}
	if len(carriers) == 0 {
		return copies(want, "no device is found that carries it")
	}
	return TheSame, nil
}

// movedBtrfs is moved for btrfs, whose device numbers are anonymous and new with each
// mount. The kernel mounts two file systems of one UUID only under different ones.
func movedBtrfs(want record.Image, f *os.File) (Sameness, error) {
	fs, err := btrfs.ReadFilesystem(f)
	if err != nil {
		return copies(want, "cannot tell which devices it has: %v", err)
	}
	carriers, err := blockdev.Local().Carriers(want.FSUUID)
	if err != nil {
		return copies(want, "cannot tell which devices carry it: %v", err)
	}
	conn, err := dm.Open()
	if err == nil {
		defer conn.Close()
	}
	distinct := map[dmtable.Device]bool{}
	for _, c := range carriers {
		distinct[shows(conn, c.Number)] = true
	}
	if len(distinct) != fs.Devices {
		return copies(want, "%d devices carry it instead of %d", len(distinct), fs.Devices)
	}
	return TheSame, nil
}

// shows returns the device whose sectors a device shows from the first one on: that below
// a shim, or itself. Conn may be nil.
func shows(conn *dm.Conn, number dmtable.Device) dmtable.Device {
	const deepest = 16
	for range deepest {
		if conn == nil {
			break
		}
		_, table, err := conn.State(dm.ByDevice(number))
		if err != nil {
			break
		}
		rows, err := table.Segments()
		if err != nil || len(rows) != 1 || rows[0].Start != 0 {
			break
		}
		number = rows[0].Device
	}
	return number
}

// FilesystemUUID reads the UUID of the file system that f is on, as blkid prints it,
// empty where it cannot be read: then the device number has to do.
func FilesystemUUID(f *os.File, filesystem string) string {
	uuid, err := uuidOf(f, filesystem)
	if err != nil {
		return ""
	}
	return uuid
}

func uuidOf(f *os.File, filesystem string) (string, error) {
	if fstype.Of(filesystem).OwnAddresses {
		fs, err := btrfs.ReadFilesystem(f)
		return blockdev.FormatUUID(fs.UUID), err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", os.NewSyscallError("fstat", err)
	}
	return DeviceUUID(dmtable.DeviceOf(st.Dev))
}

// DeviceUUID reads the UUID of the file system on a block device. It leaves a device that
// is suspended alone, which would make the reader wait.
func DeviceUUID(number dmtable.Device) (string, error) {
	finder := blockdev.Local()
	d, err := finder.ByNumber(number)
	if err != nil {
		return "", err
	}
	if _, found := blockdev.Suspended(finder.Sys, number); found {
		return "", fmt.Errorf("the device %s is suspended", number)
	}
	fs, err := finder.Filesystem(d)
	return fs.UUID, err
}
