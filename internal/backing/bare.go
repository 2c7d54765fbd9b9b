package backing

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
)

// WriteAll writes every byte of the file over with itself and has all of it on the disk
// when it returns: where the layout does not tell what was written, that is how it becomes
// known. The content is the same all the time, as far as the file system keeps what was
// never written and what was apart when it is cut off. It stops as Provision does when
// somebody opens the file, of which lease is the caller's.
func WriteAll(ctx context.Context, f *os.File, path string, lease *image.Lease, show func(done, total extents.Bytes)) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	r := repairer{file: f, path: path, guard: leaseGuard(lease, path), meter: &meter{show: show}}
	return r.writeAll(ctx, extents.Bytes(info.Size()))
}

func (r *repairer) writeAll(ctx context.Context, size extents.Bytes) error {
	if err := r.round(ctx, plan{rewrite: []stretch{{0, size}}, report: Report{Written: size}}); err != nil {
		return noSpace(r.file, r.path, size, err)
	}
	return r.file.Sync()
}

// fresh gives a new file its zeros from the first byte to the last: without files that know
// of unwritten parts each byte beyond the end that is written has all before it written
// first.
func (r *repairer) fresh(ctx context.Context, size extents.Bytes) (err error) {
	// FAT takes the blocks in one piece then; exFAT has no such call.
	err = unix.Fallocate(int(r.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, int64(size))
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fallocateError(r.file, stretch{0, size}, err)
	}
	r.meter.grow(size)
	w, err := newWriter(r.file, writeMode{blank: true, buffered: true}, r.guard, r.meter.tick)
	if err != nil {
		return fmt.Errorf("%s: %w", r.path, err)
	}
	defer func() { err = errors.Join(err, w.close()) }()
	for chunk := range chunks([]stretch{{0, size}}) {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := w.write(w.zeros[:chunk.length], chunk.offset); err != nil {
			return err
		}
		w.tick(chunk.length)
	}
	return r.file.Sync()
}

// unfinished is the name under which a new image is made where files without a name cannot
// be. A killed create leaves it, and the next one of the same image takes it over.
func unfinished(name string) string { return "." + name + ".dmloop-new" }

// named opens the file that is going to be the new image, empty and locked.
func named(dir *os.File, name, path string) (*os.File, error) {
	fail := func(err error) error { return &fs.PathError{Op: "create", Path: path, Err: err} }
	fd, err := unix.Openat(int(dir.Fd()), unfinished(name), unix.O_CREAT|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fail(err)
	}
	f := os.NewFile(uintptr(fd), path)
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(extents.Refuse(path, extents.Problem{Rule: extents.OpenElsewhere,
			Message: "somebody else makes it at this moment", Remedy: advice.AwaitProvision}), f.Close())
	} else if err != nil {
		return nil, errors.Join(fail(err), f.Close())
	}
	var own, there unix.Stat_t
	err = errors.Join(unix.Fstat(fd, &own), unix.Fstatat(int(dir.Fd()), unfinished(name), &there, unix.AT_SYMLINK_NOFOLLOW))
	switch {
	case err != nil:
	case own.Mode&unix.S_IFMT != unix.S_IFREG || own.Nlink > 1 || own.Ino != there.Ino || own.Dev != there.Dev:
		err = unix.EEXIST
	default:
		err = unix.Ftruncate(fd, 0)
	}
	if err != nil {
		return nil, errors.Join(fail(err), f.Close())
	}
	return f, nil
}

// rename gives the finished file its name, replacing nothing, and makes that durable.
func rename(f, dir *os.File, name, path string) error {
	if err := unix.Renameat2(int(dir.Fd()), unfinished(name), int(dir.Fd()), name, unix.RENAME_NOREPLACE); err != nil {
		return &fs.PathError{Op: "create", Path: path, Err: err}
	}
	// There is no journal: the folder and the table of blocks are written by syncfs, and
	// fsync has the disk empty its cache.
	return errors.Join(unix.Syncfs(int(dir.Fd())), f.Sync())
}

// tooLarge returns the problem with a file that is longer than the file system lets one be.
func tooLarge(kind string, size extents.Bytes) []extents.Problem {
	most := extents.Bytes(fstype.Of(kind).MaxFile)
	if most == 0 || size <= most {
		return nil
	}
	return []extents.Problem{{Rule: extents.UnsupportedFS, Remedy: advice.LongerFiles.At(most/(1<<20)*(1<<20), 0),
		Message: fmt.Sprintf("a file on %s has at most %d bytes, and %d are asked for", kind, most, size)}}
}

// bareFolder reports whether files in the folder are made under a name and have nothing but
// their bytes.
func bareFolder(dir *os.File) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return false, &fs.PathError{Op: "fstatfs", Path: dir.Name(), Err: err}
	}
	return fstype.OfMagic(uint32(st.Type)).Bare, nil
}
