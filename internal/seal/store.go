package seal

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/internal/fstype"
	"dmloop/internal/inode"
)

// sectorSize is what a disk writes whole or not at all when its power is cut.
const sectorSize = 512

// Attribute is the extended attribute that holds the record of a sealed image, and
// the intent while a change is under way. It is in the trusted namespace, where the
// owner of the file cannot forge it, and not in the content, where the users of a
// mapping could.
const Attribute = "trusted.dmloop.seal"

// store is a file with its attribute, as the steps of sealing need it. What is
// written is durable after sync, and before it in part or not at all.
type store interface {
	size() (extents.Bytes, error)
	blockSize() (extents.Bytes, error)
	read(off, n extents.Bytes) ([]byte, error) // what the disk has; fewer bytes at the end of the file
	write(off extents.Bytes, p []byte) error
	sync() error
	reserve(off, n extents.Bytes) error // allocates blocks, leaves the size
	grow(off, n extents.Bytes) error    // the same and makes the file longer
	truncate(size extents.Bytes) error
	attribute() ([]byte, error) // nil when there is none
	setAttribute(p []byte) error
	dropAttribute() error // no error when there is none
}

// fileStore is the store of a real file.
type fileStore struct {
	f      *os.File
	fs     fstype.Type
	beside bool // the file can have no attribute: an intent is in a file beside it
}

func newFileStore(f *os.File) fileStore {
	var st unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &st) != nil { // what matters fails later
		return fileStore{f: f}
	}
	fs := fstype.OfMagic(uint32(st.Type))
	return fileStore{f: f, fs: fs, beside: fs.Bare}
}

// most is the size that a file can have at most, 0 where it does not matter.
func (s fileStore) most() extents.Bytes { return extents.Bytes(s.fs.MaxFile) }

func (s fileStore) fd() int { return int(s.f.Fd()) }

// fail wraps the error of one system call, with the file's name.
func (s fileStore) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: s.f.Name(), Err: err}
}

func (s fileStore) size() (extents.Bytes, error) {
	st, err := s.f.Stat()
	if err != nil {
		return 0, err
	}
	return extents.Bytes(st.Size()), nil
}

func (s fileStore) blockSize() (extents.Bytes, error) {
	if s.fs.Units {
		return extents.BlockUnit(s.f)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(s.fd(), &st); err != nil {
		return 0, s.fail("fstatfs", err)
	}
	return extents.Bytes(st.Bsize), nil
}

// read bypasses the page cache, which may hold what the file had before it was
// written to through a mapping. It sets O_DIRECT on the descriptor for the
// moment of the read: opening the file again would break a lease, and a guard
// may deny it.
func (s fileStore) read(off, n extents.Bytes) ([]byte, error) {
	start := off / maxPageSize * maxPageSize
	span := alignUp(off+n, maxPageSize) - start
	buf, err := unix.Mmap(-1, 0, int(span), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, s.fail("mmap", err)
	}
	defer unix.Munmap(buf) //nolint:errcheck // of memory that we have just mapped
	got, err := 0, error(unix.EINVAL)
	if inode.SetDirect(s.f, true) == nil {
		got, err = pread(s.fd(), buf, int64(start))
		if err := inode.SetDirect(s.f, false); err != nil {
			return nil, fmt.Errorf("%s: %w", s.f.Name(), err)
		}
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) { // no direct I/O on this file system, or not in such pieces, or of such a file
		if err := s.uncache(); err != nil {
			return nil, err
		}
		got, err = pread(s.fd(), buf, int64(start))
	}
	if err != nil {
		return nil, s.fail("pread", err)
	}
	out := buf[:got]
	out = out[min(int(off-start), got):]
	return append([]byte(nil), out[:min(int(n), len(out))]...), nil
}

// pread reads until buf is full or the file ends.
func pread(fd int, buf []byte, off int64) (int, error) {
	got := 0
	for got < len(buf) {
		n, err := unix.Pread(fd, buf[got:], off+int64(got))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return got, err
		}
		got += n
		if n == 0 || n%sectorSize != 0 { // a direct read ends in the middle of a sector only at the end of the file
			break
		}
	}
	return got, nil
}

func (s fileStore) write(off extents.Bytes, p []byte) error {
	_, err := s.f.WriteAt(p, int64(off))
	return err
}

// sync makes all durable that was changed. Without a journal that is more than the file: the
// folder, and the table of what belongs to which file. syncfs writes it, and fsync, which
// has the disk empty its cache, comes after it.
func (s fileStore) sync() error {
	if s.fs.Bare {
		if err := unix.Syncfs(s.fd()); err != nil {
			return s.fail("syncfs", err)
		}
	}
	return s.f.Sync()
}

// uncache writes back what is dirty and drops the page cache of the file.
func (s fileStore) uncache() error {
	if err := s.sync(); err != nil {
		return err
	}
	return s.fail("fadvise", unix.Fadvise(s.fd(), 0, 0, unix.FADV_DONTNEED))
}

func (s fileStore) reserve(off, n extents.Bytes) error {
	err := s.fallocate(unix.FALLOC_FL_KEEP_SIZE, off, n)
	if s.fs.Bare && errors.Is(err, unix.EOPNOTSUPP) { // exFAT: the write allocates
		return nil
	}
	return err
}

func (s fileStore) grow(off, n extents.Bytes) error { return s.fallocate(0, off, n) }

// fallocate repeats on EAGAIN: f2fs says so when it has given a part.
func (s fileStore) fallocate(mode uint32, off, n extents.Bytes) error {
	for try := 0; ; try++ {
		err := unix.Fallocate(s.fd(), mode, int64(off), int64(n))
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) && try < 100 {
			continue
		}
		return s.fail("fallocate", err)
	}
}

// truncate cuts the file. A pinned f2fs file can only be cut at a section
// (f2fs_setattr in fs/f2fs/file.c): then the pin is taken off and set again,
// which newer kernels refuse for a file that has blocks (EFBIG). The image is
// plain then, and unpinned.
func (s fileStore) truncate(size extents.Bytes) error {
	err := unix.Ftruncate(s.fd(), int64(size))
	if !errors.Is(err, unix.EINVAL) {
		return s.fail("ftruncate", err)
	}
	if _, notPinned := inode.F2FSPinFailures(s.f); notPinned == nil {
		if err := inode.SetF2FSPin(s.f, false); err != nil {
			return s.fail("truncate", err)
		}
		err = unix.Ftruncate(s.fd(), int64(size))
		_ = inode.SetF2FSPin(s.f, true) // EFBIG is the rule there
	}
	return s.fail("ftruncate", err)
}

// attribute reads the attribute. Without CAP_SYS_ADMIN the kernel says ENODATA.
func (s fileStore) attribute() ([]byte, error) {
	if s.beside {
		return s.intent()
	}
	buf := make([]byte, 4096)
	n, err := unix.Fgetxattr(s.fd(), Attribute, buf)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP):
		return nil, nil
	case errors.Is(err, unix.ERANGE):
		return nil, fmt.Errorf("attribute %s: %w", Attribute, io.ErrShortBuffer)
	case err != nil:
		return nil, s.fail("fgetxattr "+Attribute, err)
	}
	return buf[:n], nil
}

func (s fileStore) setAttribute(p []byte) error {
	if s.beside {
		return s.setIntent(p)
	}
	return s.fail("fsetxattr "+Attribute, unix.Fsetxattr(s.fd(), Attribute, p, 0))
}

func (s fileStore) dropAttribute() error {
	if s.beside {
		return s.dropIntent()
	}
	err := unix.Fremovexattr(s.fd(), Attribute)
	if errors.Is(err, unix.ENODATA) {
		return nil
	}
	return s.fail("fremovexattr "+Attribute, err)
}
