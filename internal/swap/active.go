package swap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

// Active proves whether the kernel holds f as a swap file now: one answer of a Probe.
func Active(f *os.File) (bool, error) {
	p := NewProbe(f)
	active, err := p.Active()
	return active, errors.Join(err, p.Close())
}

// Probe proves, as often as it is asked, whether the kernel holds a file as a swap
// file, by asking for something that the kernel refuses with ETXTBSY then and that
// has no effect otherwise. It is not safe for concurrent use.
//
// With a descriptor that is open for writing too that is a shared writable mapping
// (do_mmap in mm/mmap.c), which is undone at once. It works on an immutable file
// and makes nothing.
//
// An immutable file cannot be opened for writing any more. With a descriptor that
// is open for reading only, a read lease answers "no": it is granted only while
// nobody has the file open for writing, which swapping has. Else the proof is a copy
// of nothing to a file without a name (generic_copy_file_checks in fs/read_write.c,
// since 5.3), which the Probe makes beside the file and keeps for the next time. Where
// no such files can be made no file is immutable either, and it is opened for writing.
type Probe struct {
	// Awake is asked before anything that sleeps while the file system is frozen; nil asks
	// nobody. With it the Probe takes the kernel's list of swap areas for an answer where
	// somebody has the file open for writing, and seldom has to ask.
	Awake func() error

	file    *os.File
	scratch *os.File // nil until it is needed
}

// NewProbe returns a Probe of f, which stays the caller's and has to stay open.
func NewProbe(f *os.File) *Probe { return &Probe{file: f} }

// Close gives back what the Probe keeps. It may be used again.
func (p *Probe) Close() error {
	if p.scratch == nil {
		return nil
	}
	err := p.scratch.Close()
	p.scratch = nil
	return err
}

// Active reports whether the kernel holds the file now. The error says that it could
// not be told.
func (p *Probe) Active() (bool, error) {
	flags, err := unix.FcntlInt(p.file.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return false, p.fail("fcntl F_GETFL", err)
	}
	if flags&unix.O_ACCMODE == unix.O_RDWR {
		return p.refusesMapping()
	}
	if p.noWriter() {
		return false, p.Close() // a file kept open for writing would be in the way of a read-only remount
	}
	if p.Awake != nil {
		if _, found, err := Lookup(p.file); err == nil && found {
			return true, nil
		}
		if err := p.Awake(); err != nil {
			return p.listed(err)
		}
	}
	active, err := p.refusesCopy()
	if err != nil {
		return p.listed(err)
	}
	return active, nil
}

func (p *Probe) fail(op string, err error) error {
	return &os.PathError{Op: op, Path: p.file.Name(), Err: err}
}

func (p *Probe) refusesMapping() (bool, error) {
	m, err := unix.Mmap(int(p.file.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	switch {
	case errors.Is(err, unix.ETXTBSY):
		return true, nil
	case err != nil:
		return false, p.fail("mmap", err)
	}
	if err := unix.Munmap(m); err != nil {
		return false, p.fail("munmap", err)
	}
	return false, nil
}

// noWriter reports whether a read lease shows that nobody has the file open for
// writing.
func (p *Probe) noWriter() bool {
	return inode.SetLease(p.file, unix.F_RDLCK) == nil && inode.SetLease(p.file, unix.F_UNLCK) == nil
}

// refusesCopy copies from beyond the end of the file, which is nothing. The kernel
// looks at the two files' nature before it looks at the range.
func (p *Probe) refusesCopy() (bool, error) {
	if p.scratch == nil {
		path, err := os.Readlink(self(p.file))
		if err != nil {
			return false, err
		}
		dir := filepath.Dir(path)
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
			return p.refusesWriter()
		}
		if err != nil {
			return false, &os.PathError{Op: "open O_TMPFILE", Path: dir, Err: err}
		}
		p.scratch = os.NewFile(uintptr(fd), dir)
	}
	st, err := p.file.Stat()
	if err != nil {
		return false, err
	}
	from, to := st.Size(), int64(0)
	n, err := unix.CopyFileRange(int(p.file.Fd()), &from, int(p.scratch.Fd()), &to, os.Getpagesize(), 0)
	switch {
	case errors.Is(err, unix.ETXTBSY):
		return true, nil
	case err != nil:
		return false, errors.Join(p.fail("copy_file_range", err), p.Close()) // the next one is made afresh
	case n != 0:
		return false, fmt.Errorf("%s: the file grew while it was asked about", p.file.Name())
	}
	return false, nil
}

// refusesWriter asks with a descriptor for writing of its own.
func (p *Probe) refusesWriter() (bool, error) {
	fd, err := inode.Reopen(int(p.file.Fd()), unix.O_RDWR)
	if err != nil {
		return false, p.fail("open", err)
	}
	writer := Probe{file: os.NewFile(uintptr(fd), p.file.Name())}
	active, err := writer.refusesMapping()
	return active, errors.Join(err, writer.file.Close())
}

// listed answers for a file system that takes no new file because it is full or
// read-only: the kernel lists the very inode as an active swap area, and somebody
// has it open for writing, as swapping has. Either of them alone proves nothing.
func (p *Probe) listed(unproved error) (bool, error) {
	_, found, err := Lookup(p.file)
	if err == nil && found && !p.noWriter() {
		return true, nil
	}
	return false, errors.Join(unproved, err)
}
