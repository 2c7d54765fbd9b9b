package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

// Found is a regular file that was looked up by its path, once, and is not open yet: it
// can be asked who it is, which no guard denies and no lease notices. While it is not
// closed its inode number is given to no other file, so that whatever is said of its
// identity, or done after Open, concerns the file that the path led to.
type Found struct {
	handle int    // an O_PATH descriptor
	given  string // the path as it was asked for
	path   string // absolute, without symbolic links
	id     Identity
}

// Find looks path up. It follows symbolic links, except for those that a stranger may have
// put there: see resolve. It fails as Open does.
func Find(path string) (*Found, error) {
	handle, err := resolve(path)
	if err != nil {
		return nil, err
	}
	f := &Found{handle: handle, given: path}
	if err := f.look(); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (f *Found) look() error {
	var st unix.Statx_t
	if err := unix.Statx(f.handle, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: f.given, Err: err}
	}
	if err := regular(f.given, uint32(st.Mode)); err != nil {
		return err
	}
	if st.Nlink == 0 {
		return &fs.PathError{Op: "open", Path: f.given, Err: unix.ENOENT}
	}
	f.id = Identity{FileID: guard.FileID{Major: st.Dev_major, Minor: st.Dev_minor, Inode: st.Ino}, Size: extents.Bytes(st.Size)}
	if st.Mask&unix.STATX_BTIME != 0 {
		f.id.Birth = nanoseconds(st.Btime)
	}
	var err error
	if f.path, err = os.Readlink(inode.Link(f.handle)); err != nil {
		return fmt.Errorf("%s: /proc is needed to open an image: %w", f.given, err)
	}
	return nil
}

// Handle returns the O_PATH descriptor, which stays the Found's.
func (f *Found) Handle() int { return f.handle }

// Identity returns who the file is. Generation is 0: only an open file tells it.
func (f *Found) Identity() Identity { return f.id }

// Path returns the file's absolute path without symbolic links.
func (f *Found) Path() string { return f.path }

// Given returns the path that was asked for.
func (f *Found) Given() string { return f.given }

// Close gives the descriptor back. The Image that Open returned stays open.
func (f *Found) Close() { unix.Close(f.handle) }

// Open opens the file for reading. It does not wait for a lease that somebody holds.
func (f *Found) Open() (*Image, error) {
	if p := provisioned(f.handle); p != nil {
		return nil, extents.Refuse(f.given, *p)
	}
	file, err := openAgain(f.handle, unix.O_RDONLY, f.given, f.path)
	if err != nil {
		return nil, err
	}
	return &Image{file: file}, nil
}

// OpenForWriting opens the image's inode once more, for reading and writing. It does not
// wait for a lease that somebody holds.
func (i *Image) OpenForWriting() (*os.File, error) {
	return openAgain(i.fd(), unix.O_RDWR, i.Path(), i.Path())
}

// openAgain opens the file that fd is a descriptor of. An open that a lease is in the
// way of is the problem open-elsewhere: the kernel would have it wait for up to
// /proc/sys/fs/lease-break-time, and the lease may be anybody's who can read the file.
func openAgain(fd, access int, given, name string) (*os.File, error) {
	opened, err := inode.Reopen(fd, access)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, extents.Refuse(given, leased(fd))
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: given, Err: err}
	}
	return os.NewFile(uintptr(opened), name), nil
}
