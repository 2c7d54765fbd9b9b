package observe

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/blockid"
	"dmloop/internal/btrfs"
	"dmloop/internal/image"
	"dmloop/internal/manifest"
)

// Sameness is how surely a file is the image of a record.
type Sameness int

// The answers of Same.
const (
	Other   Sameness = iota // another file
	Untold                  // everything fits, but whether it is the same file system cannot be told
	TheSame                 // the image
)

// Same compares a file with the image of a record by what no remount changes: inode,
// generation, birth, and the UUID of the file system. The device number decides only
// together with the birth, or where the record has no UUID: a host may come back under
// another number, and another disk under its old one. Uuid is asked only when the rest
// fits. What id does not tell (a zero) is not compared.
func Same(want manifest.Image, id image.Identity, uuid func() (string, error)) Sameness {
	differs := func(a, b int64) bool { return a != 0 && b != 0 && a != b }
	if want.Inode != id.Inode || differs(want.Birth, id.Birth) || differs(int64(want.Generation), int64(id.Generation)) {
		return Other
	}
	number := want.Device() == dmtable.Device{Major: id.Major, Minor: id.Minor}
	if number && (want.FSUUID == "" || want.Birth != 0 && want.Birth == id.Birth) {
		return TheSame // to the nanosecond: the disk need not be asked
	}
	if want.FSUUID == "" {
		return Other
	}
	switch have, err := uuid(); {
	case err != nil:
		return Untold
	case have == want.FSUUID:
		return TheSame
	}
	return Other
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
	if filesystem == "btrfs" {
		fs, err := btrfs.ReadFilesystem(f)
		u := fs.UUID
		return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]), err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", os.NewSyscallError("fstat", err)
	}
	return DeviceUUID(dmtable.Device{Major: unix.Major(st.Dev), Minor: unix.Minor(st.Dev)})
}

// DeviceUUID reads the UUID of the file system on a block device. It leaves a device that
// is suspended alone, which would make the reader wait.
func DeviceUUID(number dmtable.Device) (string, error) {
	finder := blockid.Local()
	suspended, err := os.ReadFile(filepath.Join(finder.Sys, "dev/block", number.String(), "dm/suspended"))
	if err == nil && strings.TrimSpace(string(suspended)) == "1" {
		return "", fmt.Errorf("the device %s is suspended", number)
	}
	d, err := finder.ByNumber(number)
	if err != nil {
		return "", err
	}
	fs, err := finder.Filesystem(d)
	return fs.UUID, err
}
