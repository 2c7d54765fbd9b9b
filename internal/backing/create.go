package backing

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

// Create makes a new file of size bytes at path, mode 0600, in which every byte is a
// zero with a written block of its own, in as few extents as the file system will
// give. size must be a positive multiple of the file system's block.
//
// The file has no name until it is complete and on the disk (O_TMPFILE), so a crash, a
// kill or the end of ctx leaves nothing behind; on FAT and the like, which have no such
// files, a crash or a kill leaves one of another name, which the next call takes over. An existing path, a symbolic link
// included, is never replaced: then the error wraps fs.ErrExist. Further errors:
// *NoSpaceError, checked beforehand; *extents.Refusal when a file there cannot be
// mappable, checked before anything is allocated.
func Create(ctx context.Context, path string, size extents.Bytes, opts Options) (err error) {
	dirPath, name := filepath.Split(path)
	if name == "" || name == "." || name == ".." {
		return &fs.PathError{Op: "create", Path: path, Err: unix.EISDIR}
	}
	if _, err := os.Lstat(path); err == nil {
		return &fs.PathError{Op: "create", Path: path, Err: unix.EEXIST}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir, err := os.Open(dirPath + ".")
	if err != nil {
		return err
	}
	defer dir.Close()
	bare, err := bareFolder(dir)
	if err != nil {
		return err
	}
	open, finish := unnamed, publish
	if bare {
		open, finish = named, rename
	}
	f, err := open(dir, name, path)
	if err != nil {
		return err
	}
	img, err := image.Adopt(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	if err := fill(ctx, img, path, size, opts); err != nil {
		if bare {
			err = errors.Join(err, unix.Unlinkat(int(dir.Fd()), unfinished(name), 0))
		}
		return err
	}
	return finish(f, dir, name, path)
}

// unnamed opens a new file without a name in dir.
func unnamed(dir *os.File, _, path string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EISDIR):
		// ext4, xfs, btrfs and f2fs all have O_TMPFILE since 3.18.
		return nil, extents.Refuse(path, extents.Problem{
			Rule:    extents.UnsupportedFS,
			Message: "the file system does not support files without a name (O_TMPFILE)",
			Remedy:  advice.CreateElsewhere,
		})
	case err != nil:
		return nil, &fs.PathError{Op: "create", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// fill gives the new file its blocks and zeros, and proves that it is mappable.
func fill(ctx context.Context, img *image.Image, path string, size extents.Bytes, opts Options) error {
	f := img.File()
	facts, err := img.Facts()
	if err != nil {
		return err
	}
	problems := hopeless(facts, size, extents.Empty, extents.SizeUnaligned, extents.Compressed)
	problems = append(problems, SizeProblems(size, facts.BlockSize)...)
	if problems = append(problems, tooLarge(facts.Kind(), size)...); len(problems) > 0 {
		return extents.Refuse(path, problems...)
	}
	if err := spaceFor(f, path, size); err != nil {
		return err
	}
	if err := prepare(f, facts.Kind()); err != nil {
		return err
	}
	r := repairer{file: f, path: path, guard: func() error { return nil }, meter: &meter{show: opts.Progress}, mode: writeMode{blank: true}}
	if fstype.Of(facts.Kind()).Bare {
		if err := r.fresh(ctx, size); err != nil {
			return noSpace(f, path, size, err)
		}
		return verify(img, path)
	}
	// All of it, whatever the extents say: f2fs calls the blocks of a pinned file
	// written as soon as they are allocated, with anything in them.
	everything := plan{zero: []stretch{{0, size}}, report: Report{Unwritten: size}}
	if err := r.round(ctx, everything); err != nil {
		return noSpace(f, path, size, err)
	}
	if _, err := r.run(ctx); err != nil {
		return err
	}
	return verify(img, path)
}

// SizeProblems returns what is wrong with the size of a new image on a file system with these
// blocks, in bytes; nil when nothing is.
func SizeProblems(size, block extents.Bytes) []extents.Problem {
	switch rest := size % block; {
	case size <= 0:
		return []extents.Problem{{Rule: extents.Empty, Message: fmt.Sprintf("an image of %d bytes cannot be mapped", size)}}
	case rest != 0:
		return []extents.Problem{{
			Rule:    extents.SizeUnaligned,
			Message: fmt.Sprintf("the size %d is not a multiple of the file system's block of %d bytes", size, block),
			Remedy:  advice.SizeOf.At(size-rest+block, 0),
		}}
	}
	return nil
}

// publish gives the finished file its name and makes the name durable. When only the
// latter fails, the file stays: it is complete, and it is there.
func publish(f, dir *os.File, name, path string) error {
	if err := unix.Linkat(unix.AT_FDCWD, inode.Link(int(f.Fd())), int(dir.Fd()), name, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &fs.PathError{Op: "create", Path: path, Err: err}
	}
	// The file too: on f2fs its own fsync is what makes a new link durable.
	return errors.Join(f.Sync(), dir.Sync())
}
