package backing

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// zeroStep is how much the disk is told to zero in one call, in bytes, so that
// progress shows and Ctrl-C works; a multiple of every block size.
const zeroStep = 1 << 30

// zeroByDisk makes the disk itself write zeros over the stretches
// (FALLOC_FL_WRITE_ZEROES: ext4 since 6.17, xfs since 7.x, and only on disks that have
// a command for it), which leaves written extents. It returns what it could not do here;
// everything, where the kernel or the disk cannot.
func (w *writer) zeroByDisk(ctx context.Context, stretches []stretch) ([]stretch, error) {
	for i, s := range stretches {
		for s.length > 0 {
			step := stretch{s.offset, min(s.length, zeroStep)}
			if err := errors.Join(context.Cause(ctx), w.mayZero(step)); err != nil {
				return nil, err
			}
			err := unix.Fallocate(int(w.file.Fd()), unix.FALLOC_FL_WRITE_ZEROES, int64(step.offset), int64(step.length))
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
				return append([]stretch{s}, stretches[i+1:]...), nil
			case err != nil:
				return nil, fallocateError(w.file, step, err)
			}
			w.tick(step.length)
			s = stretch{s.offset + step.length, s.length - step.length}
		}
	}
	return nil, nil
}
