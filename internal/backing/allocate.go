package backing

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"dmloop/extents"

	"golang.org/x/sys/unix"
)

const (
	// stalledTries and stalledPause bound the wait for f2fs, whose fallocate on a pinned
	// file gives EAGAIN while garbage is collected for it (fs/f2fs/file.c, 5.x to 7.3).
	stalledTries = 20
	stalledPause = 100 * time.Millisecond
)

// allocate gives s blocks, as unwritten extents where the file system has those. It
// does not change what the file reads as, and makes the file longer if s does.
func allocate(ctx context.Context, f *os.File, s stretch) error { return fallocate(ctx, f, 0, s) }

// reserve is allocate that leaves the file's size.
func reserve(ctx context.Context, f *os.File, s stretch) error {
	return fallocate(ctx, f, unix.FALLOC_FL_KEEP_SIZE, s)
}

func fallocate(ctx context.Context, f *os.File, mode uint32, s stretch) error {
	blocks := int64(-1)
	for tries := 0; ; tries++ {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		err := unix.Fallocate(int(f.Fd()), mode, int64(s.offset), int64(s.length))
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EAGAIN):
			return fallocateError(f, s, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return &fs.PathError{Op: "fstat", Path: f.Name(), Err: err}
		}
		if st.Blocks > blocks {
			blocks, tries = st.Blocks, 0 // EAGAIN after a part was given is progress
		}
		if tries == stalledTries {
			return fallocateError(f, s, err)
		}
		time.Sleep(stalledPause)
	}
}

func fallocateError(f *os.File, s stretch, err error) error {
	return &fs.PathError{Op: fmt.Sprintf("fallocate %d bytes at %d", s.length, s.offset), Path: f.Name(), Err: err}
}

// available returns how many bytes the file system of f has left for the caller.
func available(f *os.File) (extents.Bytes, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, &fs.PathError{Op: "fstatfs", Path: f.Name(), Err: err}
	}
	return extents.Bytes(st.Bavail) * extents.Bytes(st.Frsize), nil
}

// Freeing the blocks of a deleted file can take a moment: xfs does it in the
// background, ext4 and f2fs when the last descriptor is closed and the journal is written.
const (
	freeingTries = 5
	freeingPause = 50 * time.Millisecond
)

// spaceFor returns a *NoSpaceError when there are not needed bytes left. It is a
// check beforehand: the allocation itself may still fail.
func spaceFor(f *os.File, path string, needed extents.Bytes) error {
	for tries := 1; ; tries++ {
		left, err := available(f)
		if err != nil || needed <= left {
			return err
		}
		if tries == freeingTries {
			return &NoSpaceError{Path: path, Needed: needed, Available: left}
		}
		if err := unix.Syncfs(int(f.Fd())); err != nil {
			return &fs.PathError{Op: "syncfs", Path: path, Err: err}
		}
		time.Sleep(freeingPause)
	}
}

// noSpace turns ENOSPC into a *NoSpaceError and leaves other errors alone.
func noSpace(f *os.File, path string, needed extents.Bytes, err error) error {
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	left, _ := available(f)
	return &NoSpaceError{Path: path, Needed: needed, Available: left}
}
