package swap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Active proves whether the kernel holds f as a swap file now, by asking it for
// something that it refuses with ETXTBSY then and has no effect otherwise. Any
// descriptor that is open for reading will do; the error says that it could not
// be told.
//
// With a descriptor that is open for writing too that is a shared writable mapping
// (do_mmap in mm/mmap.c), which is undone at once. It works on an immutable file
// and makes nothing. Else, since an immutable file can no longer be opened for
// writing, it is a copy of nothing to a new file without a name beside it
// (generic_copy_file_checks in fs/read_write.c, since 5.3).
func Active(f *os.File) (bool, error) {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return false, &os.PathError{Op: "fcntl F_GETFL", Path: f.Name(), Err: err}
	}
	if flags&unix.O_ACCMODE == unix.O_RDWR {
		return refusesMapping(f)
	}
	return refusesCopy(f)
}

func refusesMapping(f *os.File) (bool, error) {
	m, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	switch {
	case errors.Is(err, unix.ETXTBSY):
		return true, nil
	case err != nil:
		return false, &os.PathError{Op: "mmap", Path: f.Name(), Err: err}
	}
	if err := unix.Munmap(m); err != nil {
		return false, &os.PathError{Op: "munmap", Path: f.Name(), Err: err}
	}
	return false, nil
}

// refusesCopy copies from behind the end of f, which is nothing. The kernel looks
// at the two files' nature before it looks at the range.
func refusesCopy(f *os.File) (bool, error) {
	path, err := os.Readlink(self(f))
	if err != nil {
		return false, err
	}
	dir := filepath.Dir(path)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return false, &os.PathError{Op: "open O_TMPFILE", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	st, err := f.Stat()
	if err != nil {
		return false, err
	}
	from, to := st.Size(), int64(0)
	n, err := unix.CopyFileRange(int(f.Fd()), &from, fd, &to, os.Getpagesize(), 0)
	switch {
	case errors.Is(err, unix.ETXTBSY):
		return true, nil
	case err != nil:
		return false, &os.PathError{Op: "copy_file_range", Path: f.Name(), Err: err}
	case n != 0:
		return false, fmt.Errorf("%s: the file grew while it was asked about", f.Name())
	}
	return false, nil
}
