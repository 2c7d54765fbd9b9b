package inode

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Link returns a path that leads to the inode of an open descriptor, of any kind, for as
// long as it is open, whatever happens to the file's names.
func Link(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// Reopen opens the inode of a descriptor once more with access rights of its own, such as
// unix.O_RDWR. It does not wait for a lease that somebody holds: the errno is EWOULDBLOCK
// then.
func Reopen(fd, access int) (int, error) {
	for {
		opened, err := unix.Open(Link(fd), access|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) { // of FUSE and network file systems
			return opened, err
		}
	}
}

// SetLease takes a lease on the file (unix.F_RDLCK or F_WRLCK) or gives it back
// (F_UNLCK). The errno is EAGAIN when somebody has the file open, and when there is no
// lease to be given back.
func SetLease(f *os.File, kind int) error {
	for {
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, kind)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("fcntl F_SETLEASE", err)
		}
	}
}

// Lease returns the kind of our lease on the file, F_UNLCK when there is none. While
// somebody waits for its end it is what the lease is about to become
// (target_leasetype in fs/locks.c).
func Lease(f *os.File) (kind int, err error) {
	kind, err = unix.FcntlInt(f.Fd(), unix.F_GETLEASE, 0)
	return kind, os.NewSyscallError("fcntl F_GETLEASE", err)
}

// SetDirect makes reads and writes through the descriptor bypass the page cache, or not
// any more. The errno is EINVAL on file systems that cannot.
func SetDirect(f *os.File, on bool) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return os.NewSyscallError("fcntl F_GETFL", err)
	}
	flags &^= unix.O_DIRECT
	if on {
		flags |= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags)
	return os.NewSyscallError("fcntl F_SETFL", err)
}
