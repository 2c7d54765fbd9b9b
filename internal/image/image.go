// Package image opens the user's image file and reads what decides whether it can
// be mapped: what it is, where it lives, how its file system treats it, who else
// has it open. It never writes to the file; dropping its page cache is all it does.
package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"dmloop/extents"
	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

// Image is an open image file. All facts are read through its one descriptor, so
// they are about one inode whatever happens to the path meanwhile.
type Image struct {
	file *os.File
}

// Open opens the image for reading. The path is resolved once, see Find; from then on
// only the descriptor counts. The first open is O_PATH, which has no effect on FIFOs and
// devices; only a regular file is then opened for reading, through /proc/self/fd.
//
// It fails with an *fs.PathError that wraps fs.ErrNotExist, fs.ErrPermission or
// ELOOP, or with a *extents.Refusal of the rule not-regular, or of the rule open-elsewhere
// when somebody holds a lease that an open for reading breaks.
func Open(path string) (*Image, error) {
	found, err := Find(path)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	return found.Open()
}

// Adopt makes an Image of a descriptor that is already open for reading, such as
// one passed over a socket. The Image owns f afterwards, unless Adopt fails. It
// fails with a *extents.Refusal of the rule not-regular, or when f is closed.
func Adopt(f *os.File) (*Image, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &fs.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	if err := regular(f.Name(), st.Mode); err != nil {
		return nil, err
	}
	return &Image{file: f}, nil
}

// File returns the descriptor, open for reading. It stays the Image's.
func (i *Image) File() *os.File { return i.file }

// Path returns the absolute path that the image had when it was opened, with all
// symbolic links resolved.
func (i *Image) Path() string { return i.file.Name() }

// PathNow returns the absolute path that the image has now, or "" when the kernel does
// not know one that leads to it from here: in another mount namespace, or when the file
// was opened by its handle and no folder of it was looked up since.
func (i *Image) PathNow() string {
	path, err := os.Readlink(inode.Link(i.fd()))
	if err != nil || !i.IsAt(path) {
		return ""
	}
	return path
}

// IsAt reports whether path names the image itself.
func (i *Image) IsAt(path string) bool {
	var mine, there unix.Stat_t
	return unix.Fstat(i.fd(), &mine) == nil && unix.Lstat(path, &there) == nil && mine.Dev == there.Dev && mine.Ino == there.Ino
}

// Close closes the descriptor.
func (i *Image) Close() error { return i.file.Close() }

func (i *Image) fd() int { return int(i.file.Fd()) }

// regular returns a *extents.Refusal unless mode is a regular file's.
func regular(path string, mode uint32) error {
	var kind string
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		kind = "a directory"
	case unix.S_IFIFO:
		kind = "a FIFO"
	case unix.S_IFSOCK:
		kind = "a socket"
	case unix.S_IFCHR:
		kind = "a character device"
	case unix.S_IFBLK:
		kind = "a block device"
	default:
		kind = fmt.Sprintf("of unknown type 0%o", mode&unix.S_IFMT)
	}
	return extents.Refuse(path, extents.Problem{
		Rule:    extents.NotRegular,
		Message: "not a regular file but " + kind,
	})
}

// retry repeats call while it is interrupted by a signal, which open(2) can be on
// FUSE and network file systems.
func retry[T any](call func() (T, error)) (T, error) {
	for {
		value, err := call()
		if !errors.Is(err, unix.EINTR) {
			return value, err
		}
	}
}
