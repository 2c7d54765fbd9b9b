// Package swap makes the kernel hold a file as a swap file, which is the one pin
// on which the kernel itself insists, and reports whether it does. See swapon(2)
// and mm/swapfile.c in the kernel.
package swap

import (
	"errors"
	"fmt"
	"os"

	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

// What a claim or its release fails with, beside the errno. Match them with
// errors.Is.
var (
	ErrActive       = errors.New("the kernel holds the file as a swap file already")
	ErrNotActive    = errors.New("the file is not an active swap file")
	ErrNoSlot       = errors.New("the kernel has no room for another swap file")
	ErrImmutable    = errors.New("the file is immutable")
	ErrNotPermitted = errors.New("not permitted")
	ErrNoSwap       = errors.New("the kernel has no support for swap")
	ErrRefused      = errors.New("the kernel refuses the file as a swap file")
	ErrBusy         = errors.New("the file system is busy with a change that excludes swap files")
	ErrReadOnlyFS   = errors.New("the file system is read-only")
	ErrNoMemory     = errors.New("not enough memory to read the swapped page back")
	ErrRecovered    = errors.New("the file system does not accept the file for swap as it has it in memory")
	ErrUnlinked     = errors.New("the file has no name any more")
	ErrLeased       = errors.New("somebody holds a lease on the file")
)

// Error is a failed claim or release.
type Error struct {
	Op     string // "swapon" or "swapoff"
	Path   string // name under which the file was opened
	Kind   error  // one of the errors above; nil when the errno says it all
	Errno  error
	Reason string // what the kernel logged, when it did
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s %s: %v", e.Op, e.Path, e.Errno)
	if e.Kind != nil {
		s = fmt.Sprintf("%s %s: %v (%v)", e.Op, e.Path, e.Kind, e.Errno)
	}
	if e.Reason != "" {
		s += "; kernel: " + e.Reason
	}
	return s
}

// Unwrap returns the kind and the errno.
func (e *Error) Unwrap() []error {
	if e.Kind == nil {
		return []error{e.Errno}
	}
	return []error{e.Kind, e.Errno}
}

// Claim makes the kernel hold f as a swap file, with the lowest priority that
// there is: that of a swapon(2) without flags (an explicit priority, 0 too, is
// above it). The kernel finds the file by the descriptor, so a file put in its
// place is not taken. f2fs may move blocks: read the layout afterwards.
//
// The claim survives this process; only Release, and whoever else calls
// swapoff(2), ends it. The error is *Error.
func Claim(f *os.File) error {
	log := openLog()
	defer log.close()
	hold, leased := holdOpen(f)
	if leased {
		return &Error{Op: "swapon", Path: f.Name(), Kind: ErrLeased, Errno: unix.EWOULDBLOCK}
	}
	err := swapon(self(f), 0)
	if hold >= 0 {
		unix.Close(hold)
	}
	if err == nil {
		return nil
	}
	e := &Error{Op: "swapon", Path: f.Name(), Errno: err}
	switch {
	case errors.Is(err, unix.EBUSY):
		// Also btrfs, while a balance or a device change runs.
		e.Kind = ErrBusy
		if active, perr := Active(f); perr == nil && active {
			e.Kind = ErrActive
		}
	case errors.Is(err, unix.EPERM):
		// No capability, no swap slot, or the open for writing was denied.
		e.Kind = ErrNotPermitted
		if immutable(f) {
			e.Kind = ErrImmutable
		} else if room, perr := Room(); perr == nil && !room {
			e.Kind = ErrNoSlot
		}
	case errors.Is(err, unix.EINVAL):
		e.Kind, e.Reason = ErrRefused, log.since()
	case errors.Is(err, unix.EOPNOTSUPP):
		e.Kind = ErrRecovered
	case errors.Is(err, unix.ENOENT):
		e.Kind = ErrUnlinked
	case errors.Is(err, unix.ENOSYS):
		e.Kind = ErrNoSwap
	case errors.Is(err, unix.EROFS):
		e.Kind = ErrReadOnlyFS
	}
	return e
}

// holdOpen opens f for writing for the time of a swapon, and reports whether somebody's
// lease is in the way. swapon's own open would wait for the end of a lease (45 s); while
// the file is open for writing, nobody gets a new one. What else is in the way of
// an open, swapon says itself.
func holdOpen(f *os.File) (fd int, leased bool) {
	fd, err := inode.Reopen(int(f.Fd()), unix.O_RDWR)
	if err != nil {
		return -1, errors.Is(err, unix.EWOULDBLOCK)
	}
	return fd, false
}

// Release ends the claim on f. It fails with ErrImmutable while f is immutable,
// for the kernel opens it for writing, and leaves the claim in force with every
// error but ErrNotActive. On f2fs the kernel takes the file's pin off as well
// (f2fs_swap_deactivate in fs/f2fs/data.c). The error is *Error.
func Release(f *os.File) error {
	err := swapoff(self(f))
	if err == nil {
		return nil
	}
	e := &Error{Op: "swapoff", Path: f.Name(), Errno: err}
	switch {
	case errors.Is(err, unix.EINVAL):
		e.Kind = ErrNotActive
	case errors.Is(err, unix.EPERM):
		e.Kind = ErrNotPermitted
		if immutable(f) {
			e.Kind = ErrImmutable
		}
	case errors.Is(err, unix.EROFS):
		e.Kind = ErrReadOnlyFS
	case errors.Is(err, unix.ENOMEM):
		e.Kind = ErrNoMemory
	case errors.Is(err, unix.ENOSYS):
		e.Kind = ErrNoSwap
	}
	return e
}

// Room reports whether the kernel would take one more swap file. It asks for a
// name that no file has: swapon(2) looks for a free place before it looks for
// the file. The error is ErrNoSwap or ErrNotPermitted when it cannot be told.
func Room() (bool, error) {
	err := swapon("", 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return true, nil
	case errors.Is(err, unix.ENOSYS):
		return false, ErrNoSwap
	case errors.Is(err, unix.EPERM):
		if !privileged() {
			return false, ErrNotPermitted
		}
		return false, nil
	}
	return false, &os.SyscallError{Syscall: "swapon", Err: err}
}

// self returns a name of f that leads to the same inode for as long as f is open.
func self(f *os.File) string { return inode.Link(int(f.Fd())) }

func immutable(f *os.File) bool {
	var st unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_IMMUTABLE != 0
}

// privileged reports whether this process has CAP_SYS_ADMIN in its user namespace.
func privileged() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&hdr, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}
