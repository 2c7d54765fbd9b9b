package image

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"dmloop/extents"

	"golang.org/x/sys/unix"
)

// ErrCannotProve says that the kernel would not tell whether somebody else has the
// file open; the errno is wrapped beside it. That is not the answer "nobody".
var ErrCannotProve = errors.New("cannot prove that nobody else has the file open")

// ProveSoleOpener takes a write lease on f (fcntl F_SETLEASE F_WRLCK), which the
// kernel grants only while f is the one open description of the file: no other
// descriptor, mapping, loop device or active swap, in any process, our own
// included. O_PATH descriptors do not count. Until release is called, anybody else who
// opens the file blocks for up to /proc/sys/fs/lease-break-time (45 s), so hold it shortly.
//
// It fails with a *ProblemError of the rule open-elsewhere that names whom it can, or
// with an error that wraps ErrCannotProve: EACCES without CAP_LEASE on a file of
// somebody else's, EINVAL with fs.leases-enable=0 or on a file system without leases.
func ProveSoleOpener(f *os.File) (release func() error, err error) {
	err = setLease(f, unix.F_WRLCK)
	switch {
	case err == nil:
		return func() error { return setLease(f, unix.F_UNLCK) }, nil
	case errors.Is(err, unix.EAGAIN):
		return nil, &ProblemError{Path: f.Name(), Problem: openElsewhere(f)}
	}
	return nil, fmt.Errorf("%s: %w: %w", f.Name(), ErrCannotProve, err)
}

func setLease(f *os.File, kind int) error {
	_, err := retry(func() (int, error) { return unix.FcntlInt(f.Fd(), unix.F_SETLEASE, kind) })
	if err != nil {
		return os.NewSyscallError("fcntl F_SETLEASE", err)
	}
	return nil
}

func openElsewhere(f *os.File) extents.Problem {
	p := extents.Problem{
		Rule:    extents.OpenElsewhere,
		Message: "somebody else has the file open, out of sight from here (another PID namespace, or the kernel itself)",
		Hint:    "close it there: see fuser -v IMAGE, losetup -j IMAGE",
	}
	openers, err := Openers(f)
	if err != nil || len(openers) == 0 {
		return p
	}
	names := make([]string, len(openers))
	for i, o := range openers {
		names[i] = o.String()
	}
	p.Message = "somebody else has the file open: " + strings.Join(names, ", ")
	return p
}
