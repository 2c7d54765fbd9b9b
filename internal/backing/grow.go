package backing

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/fstype"
	"dmloop/internal/image"

	"golang.org/x/sys/unix"
)

// GrowOptions say how a file is made longer.
type GrowOptions struct {
	Progress func(done, total extents.Bytes) // as in Options
	Guard    func() error                    // asked before each write; an error of it ends the work
	// Live says that a device shows the blocks that the file has already. Then no page of
	// those may get into memory, where it would be older than what the device writes.
	Live bool
}

// ErrNoAppend says that the file system takes no write beyond the end of a pinned file:
// f2fs since about Linux 6.13 (f2fs_write_begin gives EIO). What is new could not be made
// zeros before it can be read.
var ErrNoAppend = errors.New("this kernel's f2fs takes no write beyond the end of a pinned file")

// ErrNoSections says that f2fs has no free section left: it gives a pinned file whole ones only.
var ErrNoSections = errors.New("not enough space: f2fs has no more free sections, which it gives a pinned file whole")

// Grow makes img, which is open for writing, longer: size bytes, of which the new ones are zeros in
// written blocks of their own. Size and what the file has are multiples of the file
// system's block, and nobody else changes the file meanwhile.
//
// Blocks are allocated beyond the end first, then the size changes at once, then the zeros
// are written; a kill leaves the old size or the new one, and zeros in what is new. A pinned
// file on f2fs becomes longer with each write instead, since its blocks hold anything until
// they are written. When Grow fails the file is as long as it was.
//
// It has proved, when it returns nil, that the old part lies where it lay and that no rule
// of the layout is broken. Errors: *NoSpaceError; ErrNoSections; *extents.Refusal; ErrNoAppend.
func Grow(ctx context.Context, img *image.Image, size extents.Bytes, o GrowOptions) (err error) {
	facts, err := img.Facts()
	if err != nil {
		return err
	}
	tail := stretch{facts.Size, size - facts.Size}
	if problems := append(SizeProblems(facts.Size, facts.BlockSize), SizeProblems(size, facts.BlockSize)...); len(problems) > 0 {
		return extents.Refuse(img.Path(), problems...)
	}
	f := img.File()
	before, err := extents.Read(f)
	if err != nil {
		return err
	}
	if err := spaceFor(f, img.Path(), tail.length-reserved(before, tail)); err != nil {
		return err
	}
	if err := lengthen(ctx, img, facts, tail, o); err != nil {
		return errors.Join(noSpace(f, img.Path(), tail.length, err), Shorten(f, facts.Size))
	}
	if err := provenLonger(img, facts, before, size); err != nil {
		return errors.Join(err, Shorten(f, facts.Size))
	}
	return nil
}

// Complete gives what has no written block yet in img, which is open for writing, zeros in
// blocks of its own: a Grow that was killed left it. Errors are those of Grow.
func Complete(ctx context.Context, img *image.Image, o GrowOptions) error {
	facts, err := img.Facts()
	if err != nil {
		return err
	}
	if facts.Pin.Pinned {
		return verifyPinned(img, img.Path())
	}
	r := repairer{file: img.File(), path: img.Path(), guard: o.Guard, meter: &meter{show: o.Progress},
		mode: writeMode{buffered: fstype.Of(facts.Kind()).BufferedFill}}
	if r.guard == nil {
		r.guard = func() error { return nil }
	}
	if _, err := r.run(ctx); err != nil {
		return err
	}
	return verify(img, img.Path())
}

// Shorten takes back what Grow did to a file that had size bytes, also what is allocated
// beyond its end, durably. A file that is shorter is left alone.
func Shorten(f *os.File, size extents.Bytes) error {
	info, err := f.Stat()
	if err != nil || extents.Bytes(info.Size()) < size {
		return err
	}
	err = unix.Ftruncate(int(f.Fd()), int64(size))
	if errors.Is(err, unix.EINVAL) && extents.Bytes(info.Size()) == size {
		return nil // f2fs cuts pinned files at its sections only (newer kernels): some blocks stay allocated
	}
	if err != nil {
		return &fs.PathError{Op: "ftruncate", Path: f.Name(), Err: err}
	}
	return f.Sync()
}

// reserved returns how much of a stretch beyond the end has blocks already: a Grow that was killed
// left them, or f2fs gave a whole section.
func reserved(l extents.Layout, tail stretch) (n extents.Bytes) {
	for _, e := range l.Extents {
		n += max(min(e.Logical+e.Length, tail.offset+tail.length)-max(e.Logical, tail.offset), 0)
	}
	return n
}

// lengthen gives the file its blocks, size and zeros.
func lengthen(ctx context.Context, img *image.Image, facts image.Facts, tail stretch, o GrowOptions) (err error) {
	f := img.File()
	m := &meter{show: o.Progress}
	m.grow(tail.length)
	guard := o.Guard
	if guard == nil {
		guard = func() error { return nil }
	}
	mode := writeMode{buffered: fstype.Of(facts.Kind()).BufferedFill}
	mode.past = o.Live && !mode.buffered
	w, err := newWriter(f, mode, guard, m.tick)
	if err != nil {
		return fmt.Errorf("%s: %w", img.Path(), err)
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if facts.Pin.Pinned {
		return w.appendPinned(ctx, tail, facts.BlockSize)
	}
	if err := errors.Join(guard(), reserve(ctx, f, tail)); err != nil {
		return err
	}
	if err := unix.Ftruncate(int(f.Fd()), int64(tail.offset+tail.length)); err != nil {
		return &fs.PathError{Op: "ftruncate", Path: f.Name(), Err: err}
	}
	left := []stretch{tail}
	if !o.Live {
		if left, err = w.zeroByDisk(ctx, left); err != nil {
			return err
		}
	}
	if err := w.zero(ctx, left); err != nil {
		return err
	}
	return f.Sync()
}

// appendPinned makes a pinned file on f2fs longer by writing zeros behind its end, the
// first block of them before more is allocated than can be given back.
func (w *writer) appendPinned(ctx context.Context, tail stretch, block extents.Bytes) error {
	first := stretch{tail.offset, min(block, tail.length)}
	if err := w.appendZeros(ctx, first); err != nil {
		if errors.Is(err, unix.EIO) {
			return fmt.Errorf("%s: %w", w.file.Name(), ErrNoAppend)
		}
		return err
	}
	rest := stretch{tail.offset + first.length, tail.length - first.length}
	if rest.length > 0 {
		err := w.appendZeros(ctx, rest)
		if errors.Is(err, unix.EAGAIN) {
			err = fmt.Errorf("%w: %w", ErrNoSections, err)
		}
		if err != nil {
			return err
		}
	}
	return w.file.Sync()
}

// appendZeros allocates a stretch behind the end of the file and writes it, from its
// beginning to its end.
func (w *writer) appendZeros(ctx context.Context, s stretch) error {
	if err := errors.Join(w.guard(), reserve(ctx, w.file, s)); err != nil {
		return err
	}
	for chunk := range chunks([]stretch{s}) {
		if err := errors.Join(context.Cause(ctx), w.guard()); err != nil {
			return err
		}
		if err := w.write(w.zeros[:chunk.length], chunk.offset); err != nil {
			return err
		}
		w.tick(chunk.length)
	}
	return nil
}

// provenLonger compares the layout of now with the one before.
func provenLonger(img *image.Image, facts image.Facts, before extents.Layout, size extents.Bytes) error {
	after, err := extents.Read(img.File())
	if err != nil {
		return err
	}
	if after.Size != size {
		return extents.Refuse(img.Path(), unstable(fmt.Sprintf("the size is %d bytes instead of %d", after.Size, size)))
	}
	if problems := after.Problems(facts.BlockSize, 0); len(problems) > 0 {
		return extents.Refuse(img.Path(), problems...)
	}
	was, err := before.Window(0, facts.Size)
	if err != nil {
		return err
	}
	is, err := after.Window(0, facts.Size)
	if err != nil {
		return err
	}
	if diff := extents.Diff(was, is); diff != "" {
		return extents.Refuse(img.Path(), unstable(diff))
	}
	return nil
}

func unstable(what string) extents.Problem {
	return extents.Problem{Rule: extents.Unstable, Message: "the image changed while it was made longer: " + what, Remedy: advice.SeeWriters}
}
