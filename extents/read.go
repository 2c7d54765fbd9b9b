package extents

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"dmloop/internal/ioctl"
)

// fiemapRequest takes struct fiemap with its rows after it (linux/fs.h).
var fiemapRequest = ioctl.IOWR('f', 11, headerSize, "FS_IOC_FIEMAP")

// batchRows is the number of rows asked for in one call: fewer than 256 or more than
// 4096 are measurably slower. The first call asks for firstRows, enough for most
// files: memory costs more than it looks where each page's first use is a trap.
const (
	firstRows = 256
	batchRows = 4096
)

// Read returns the layout of f as the kernel reports it: rows unmerged, in the
// kernel's order, preallocation beyond the end of the file included. The file's
// dirty pages are written back first (FIEMAP_FLAG_SYNC). Any descriptor that is
// open for reading will do.
//
// FAT and exFAT have no FIEMAP. There the kernel is asked for single blocks (FIBMAP, which
// takes CAP_SYS_RAWIO), and blocks that follow each other are one row. It tells nothing of
// blocks that were never written: on exFAT a part that reads as zeros may hold anything.
//
// The rows are read in several calls, so a file that is changed meanwhile gives
// a layout that never was: read twice and compare. Rows that overlap or run
// backwards are returned as they are, and Problems refuses them. The error wraps
// the errno of the ioctl: EOPNOTSUPP or ENOTTY where the file system has no FIEMAP.
func Read(f *os.File) (Layout, error) {
	info, err := f.Stat()
	if err != nil {
		return Layout{}, err
	}
	walk, err := walkOf(f)
	if err != nil {
		return Layout{}, err
	}
	rows, err := readRows(Bytes(info.Size()), walk)
	if err != nil {
		return Layout{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return Layout{Size: Bytes(info.Size()), Extents: rows}, nil
}

// Each is Read for callers that look at the rows batch by batch and do not
// keep them: the slice is used again for a later batch. The kernel is asked for the
// next batch while visit looks at one. An error of visit ends the reading and is
// returned as it is.
func Each(f *os.File, visit func(rows []Extent) error) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	walk, err := walkOf(f)
	if err != nil {
		return err
	}
	read, refused := eachAhead(Bytes(info.Size()), walk, visit)
	if refused != nil {
		return refused
	}
	if read != nil {
		return fmt.Errorf("%s: %w", f.Name(), read)
	}
	return nil
}

// eachAhead runs eachBatch one batch ahead of visit, and has ended it when it returns.
// It returns the error of reading, which came after all that was visited, and that of visit.
func eachAhead(size Bytes, walk walk, visit func(rows []Extent) error) (read, refused error) {
	batches, enough, ended := make(chan []Extent), make(chan struct{}), make(chan struct{})
	stopped := errors.New("stopped")
	go func() {
		defer close(ended)
		defer close(batches)
		var kept [2][]Extent // the one that visit has, and the next
		read = walk(size, func(rows []Extent, _ Bytes) error {
			kept[0], kept[1] = kept[1], append(kept[0][:0], rows...)
			select {
			case batches <- kept[1]:
				return nil
			case <-enough: // nobody receives any more
				return stopped
			}
		})
	}()
	for rows := range batches {
		if refused = visit(rows); refused != nil {
			break
		}
	}
	close(enough)
	<-ended
	return read, refused
}

// Same reads the layout of f again, batch by batch, and reports whether every row
// is the one that Read returned in l. A difference in rows need not be one in
// blocks: read and Diff when it matters.
func Same(f *os.File, l Layout) (bool, error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if Bytes(info.Size()) != l.Size {
		return false, nil
	}
	walk, err := walkOf(f)
	if err != nil {
		return false, err
	}
	same, err := sameRows(l, walk)
	if err != nil {
		return false, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return same, nil
}

func sameRows(l Layout, walk walk) (bool, error) {
	left := l.Extents
	differs := errors.New("differs")
	err := walk(l.Size, func(rows []Extent, _ Bytes) error {
		if len(rows) > len(left) || !slices.Equal(rows, left[:len(rows)]) {
			return differs
		}
		left = left[len(rows):]
		return nil
	})
	if errors.Is(err, differs) {
		return false, nil
	}
	return err == nil && len(left) == 0, err
}

// ReadLike is Read for a file that is expected to have the layout like, clipped and merged:
// it then returns like itself, and keeps no rows of its own. Otherwise it returns what the
// file has, clipped and merged.
func ReadLike(f *os.File, like Layout) (Layout, error) {
	info, err := f.Stat()
	if err != nil {
		return Layout{}, err
	}
	walk, err := walkOf(f)
	if err != nil {
		return Layout{}, err
	}
	l, err := readLike(Bytes(info.Size()), like, walk)
	if err != nil {
		return Layout{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return l, nil
}

func readLike(size Bytes, like Layout, walk walk) (Layout, error) {
	if size == like.Size {
		if as, err := mergesTo(like, walk); as || err != nil {
			return like, err
		}
	}
	rows, err := readRows(size, walk)
	return Layout{Size: size, Extents: rows}.Clip().Merge(), err
}

// mergesTo reports whether the rows of walk, all within the file, are those of l when they
// are merged.
func mergesTo(l Layout, walk walk) (bool, error) {
	left := l.Extents
	differs := errors.New("differs")
	var row, merged Extent // the last one, and what it is the end of
	err := walk(l.Size, func(rows []Extent, _ Bytes) error {
		for _, e := range rows {
			if e.Flags&FlagLast != 0 && e.Logical < l.Size {
				e = e.trim(0, l.Size)
			}
			switch {
			case e.end() > l.Size:
				return differs // what is beyond the end takes a look at all of it
			case merged.Length != 0 && e.continues(row):
				merged.Length += e.Length
				merged.Flags |= e.Flags
			case merged.Length != 0:
				if len(left) == 0 || merged != left[0] {
					return differs
				}
				left = left[1:]
				fallthrough
			default:
				merged = e
			}
			row = e
		}
		return nil
	})
	if errors.Is(err, differs) {
		return false, nil
	}
	return err == nil && (len(left) == 1 && left[0] == merged || len(left) == 0 && merged.Length == 0), err
}

// A walk tells visit the rows of a file of size bytes, batch after batch, and up to which
// byte each batch reaches. An error of visit ends it and is returned as it is.
type walk func(size Bytes, visit func(rows []Extent, done Bytes) error) error

// walkOf chooses by the file system, never by what fails: where FIEMAP is there it is the
// only one that is believed.
func walkOf(f *os.File) (walk, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return nil, &os.PathError{Op: "fstatfs", Path: f.Name(), Err: err}
	}
	if byBlock(uint32(fs.Type)) {
		return fibmapWalk(f, Bytes(fs.Bsize))
	}
	return fiemapWalk(func(buf []byte) error { return ioctl.Buffer(int(f.Fd()), fiemapRequest, buf) }), nil
}

// fiemapWalk is eachBatch.
func fiemapWalk(call func(buf []byte) error) walk {
	return func(size Bytes, visit func(rows []Extent, done Bytes) error) error {
		return eachBatch(size, call, visit)
	}
}

// readRows collects all batches.
func readRows(size Bytes, walk walk) ([]Extent, error) {
	var rows []Extent
	err := walk(size, func(batch []Extent, done Bytes) error {
		if cap(rows)-len(rows) < len(batch) {
			rows = slices.Grow(rows, len(batch)+expected(len(rows)+len(batch), done, size))
		}
		rows = append(rows, batch...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// eachBatch calls until the row with FlagLast, until a call returns no rows, or
// until a whole batch lies beyond size, which only a file that grows while it is
// read, or an enormous preallocation, can do. Each call starts where the
// rows before it end, so the number of calls is finite whatever the kernel says.
// visit is told, too, up to which byte the batch reaches.
func eachBatch(size Bytes, call func(buf []byte) error, visit func(rows []Extent, done Bytes) error) error {
	m := memories.Get().(*memory)
	defer memories.Put(m)
	buf := m.sized(firstRows)
	for start := Bytes(0); ; {
		encodeRequest(buf, start)
		if err := call(buf); err != nil {
			return err
		}
		rows, err := decodeReply(m.rows[:0], buf)
		if err != nil {
			return err
		}
		m.rows = rows
		if len(rows) == 0 {
			return nil
		}
		last := rows[len(rows)-1]
		if err := visit(rows, last.end()); err != nil {
			return err
		}
		if last.Flags&FlagLast != 0 || rows[0].Logical > size {
			return nil
		}
		if last.end() <= start {
			return fmt.Errorf("FIEMAP from byte %d returned rows that end at byte %d", start, last.end())
		}
		start = last.end()
		buf = m.sized(batchRows)
	}
}

// memory is what a reading needs. The guard reads again and again, and what it would leave
// behind each time would cost it more than the kernel's part.
type memory struct {
	buf  []byte
	rows []Extent
}

var memories = sync.Pool{New: func() any { return new(memory) }}

// sized returns a buffer for so many rows.
func (m *memory) sized(rows int) []byte {
	size := headerSize + rows*rowSize
	if cap(m.buf) < size {
		m.buf, m.rows = make([]byte, size), make([]Extent, 0, rows)
	}
	return m.buf[:size]
}

// expected guesses how many rows are still to come when n rows cover the file up to
// done of size, so that a list of a million is not copied over and over as it grows.
// It never says more than seven times what is there, so a bad guess costs little.
func expected(n int, done, size Bytes) int {
	guess := float64(n) * float64(max(size-done, 0)) / float64(done) * 1.1
	return max(batchRows, int(min(guess, float64(7*n))))
}
