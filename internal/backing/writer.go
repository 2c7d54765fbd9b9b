package backing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"sync"

	"dmloop/extents"
	"dmloop/internal/inode"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// chunkSize is the length of one write, in bytes: the size from which disks do not
	// get faster, and a multiple of every file system's block.
	chunkSize = 4 << 20
	// inFlight is the number of writes under way at a time.
	inFlight = 4
)

// stretch is length bytes of the file from offset, both multiples of its block.
type stretch struct {
	offset, length extents.Bytes
}

// ErrNotZero says that a part of the file that the kernel calls a hole or unwritten
// does not read as zeros. Nothing was written there.
var ErrNotZero = errors.New("what should be a hole or unwritten holds data")

// writer writes to one file, with O_DIRECT where it may and can.
type writer struct {
	file    *os.File
	guard   func() error // asked before each write; an error stops the work
	tick    func(extents.Bytes)
	mode    writeMode
	zeros   []byte      // chunkSize bytes, never written to
	buffers chan []byte // inFlight buffers of chunkSize
}

// writeMode is what must be known of a file before writing to it.
type writeMode struct {
	blank    bool // the file has no content yet: do not look before writing zeros
	buffered bool // no O_DIRECT
	past     bool // nothing else than O_DIRECT: no page of the file may get into memory
}

// newWriter switches file to O_DIRECT unless mode forbids it. The caller closes the
// writer, not the file.
func newWriter(file *os.File, mode writeMode, guard func() error, tick func(extents.Bytes)) (*writer, error) {
	w := &writer{file: file, mode: mode, guard: guard, tick: tick, buffers: make(chan []byte, inFlight)}
	var err error
	if w.zeros, err = alignedBuffer(); err != nil {
		return nil, err
	}
	clear(w.zeros) // pages of our own instead of the shared zero page
	for range inFlight {
		buf, err := alignedBuffer()
		if err != nil {
			return nil, errors.Join(err, w.close())
		}
		w.buffers <- buf
	}
	if err := w.direct(!mode.buffered); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// alignedBuffer returns chunkSize zero bytes at a page border, in large pages where
// the kernel has some, so that a disk gets them in few pieces.
func alignedBuffer() ([]byte, error) {
	buf, err := unix.Mmap(-1, 0, chunkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	_ = unix.Madvise(buf, unix.MADV_HUGEPAGE) // only faster: EINVAL on kernels without it
	return buf, nil
}

// direct switches O_DIRECT on or off. Going without it is not an error: the data then
// goes through the page cache and is on the disk after fsync all the same.
func (w *writer) direct(on bool) error {
	err := inode.SetDirect(w.file, on)
	if on && errors.Is(err, unix.EINVAL) && !w.mode.past {
		return nil
	}
	return err
}

// close frees the buffers, all of which must be back, and ends O_DIRECT.
func (w *writer) close() error {
	close(w.buffers)
	err := errors.Join(w.direct(false), unix.Munmap(w.zeros))
	for buf := range w.buffers {
		err = errors.Join(err, unix.Munmap(buf))
	}
	return err
}

// zero writes zeros over the stretches, several writes at a time. It returns the
// first error when no write is under way any more.
func (w *writer) zero(ctx context.Context, stretches []stretch) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(inFlight)
	var mutex sync.Mutex
	for chunk := range chunks(stretches) {
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error {
			if err := w.mayZero(chunk); err != nil {
				return err
			}
			if err := w.write(w.zeros[:chunk.length], chunk.offset); err != nil {
				return err
			}
			mutex.Lock()
			defer mutex.Unlock()
			w.tick(chunk.length)
			return nil
		})
	}
	return errors.Join(group.Wait(), context.Cause(ctx))
}

// mayZero returns an error unless zeros can be written over s without changing the
// content. It does not take the kernel's word for a hole but reads the stretch.
func (w *writer) mayZero(s stretch) error {
	if err := w.guard(); err != nil || w.mode.blank {
		return err
	}
	buf := <-w.buffers
	defer func() { w.buffers <- buf }()
	for chunk := range chunks([]stretch{s}) {
		if err := w.read(buf[:chunk.length], chunk.offset); err != nil {
			return err
		}
		if !bytes.Equal(buf[:chunk.length], w.zeros[:chunk.length]) {
			return fmt.Errorf("%s: bytes %d to %d: %w", w.file.Name(), chunk.offset, chunk.offset+chunk.length-1, ErrNotZero)
		}
	}
	return w.guard()
}

// rewrite writes over each stretch what it holds, which makes a copy-on-write file
// system give it new blocks of its own. A crash leaves the old or the new blocks, with
// the same content. One write at a time: with several in flight btrfs and xfs take
// the blocks from all over the place (49 extents instead of 2 for 256 MiB on btrfs).
func (w *writer) rewrite(ctx context.Context, stretches []stretch) error {
	buf := <-w.buffers
	defer func() { w.buffers <- buf }()
	for chunk := range chunks(stretches) {
		if err := errors.Join(context.Cause(ctx), w.guard()); err != nil {
			return err
		}
		if err := w.read(buf[:chunk.length], chunk.offset); err != nil {
			return err
		}
		if err := w.guard(); err != nil {
			return err
		}
		if err := w.write(buf[:chunk.length], chunk.offset); err != nil {
			return err
		}
		w.tick(chunk.length)
	}
	return nil
}

// chunks cuts stretches into pieces that fit a buffer.
func chunks(stretches []stretch) iter.Seq[stretch] {
	return func(yield func(stretch) bool) {
		for _, s := range stretches {
			for s.length > 0 {
				chunk := stretch{s.offset, min(s.length, chunkSize)}
				if !yield(chunk) {
					return
				}
				s = stretch{s.offset + chunk.length, s.length - chunk.length}
			}
		}
	}
}

// write writes all of buf at offset. When the file system refuses O_DIRECT only
// now, it goes on through the page cache.
func (w *writer) write(buf []byte, offset extents.Bytes) error {
	refused := false
	for len(buf) > 0 {
		n, err := unix.Pwrite(int(w.file.Fd()), buf, int64(offset))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EINVAL) && !refused && !w.mode.past:
			refused = true
			if err := w.direct(false); err != nil {
				return err
			}
			continue
		case err != nil:
			return &fs.PathError{Op: "write", Path: w.file.Name(), Err: err}
		}
		buf, offset = buf[n:], offset+extents.Bytes(n)
	}
	return nil
}

// read fills buf from offset.
func (w *writer) read(buf []byte, offset extents.Bytes) error {
	for len(buf) > 0 {
		n, err := unix.Pread(int(w.file.Fd()), buf, int64(offset))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return &fs.PathError{Op: "read", Path: w.file.Name(), Err: err}
		case n == 0:
			return &fs.PathError{Op: "read", Path: w.file.Name(), Err: io.ErrUnexpectedEOF}
		}
		buf, offset = buf[n:], offset+extents.Bytes(n)
	}
	return nil
}
