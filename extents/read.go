package extents

import (
	"fmt"
	"os"
	"slices"

	"dmloop/internal/ioctl"
)

// fiemapRequest is FS_IOC_FIEMAP, _IOWR('f', 11, struct fiemap) in linux/fs.h.
var fiemapRequest = ioctl.Request{Number: 0xc020660b, Name: "FS_IOC_FIEMAP"}

// batchRows is the number of rows asked for in one call. Fewer than 256 or more
// than 4096 are measurably slower.
const batchRows = 1024

// Read returns the layout of f as the kernel reports it: rows unmerged, in the
// kernel's order, preallocation behind the end of the file included. The file's
// dirty pages are written back first (FIEMAP_FLAG_SYNC). Any descriptor that is
// open for reading will do.
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
	call := func(buf []byte) error { return ioctl.Buffer(int(f.Fd()), fiemapRequest, buf) }
	rows, err := readRows(Bytes(info.Size()), call)
	if err != nil {
		return Layout{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return Layout{Size: Bytes(info.Size()), Extents: rows}, nil
}

// readRows calls until the row with FlagLast, until a call returns no rows, or
// until a whole batch lies behind size, which only a file that grows while it is
// read, or an enormous preallocation, can do. Each call starts where the
// rows before it end, so the number of calls is finite whatever the kernel says.
func readRows(size Bytes, call func(buf []byte) error) ([]Extent, error) {
	buf := make([]byte, headerSize+batchRows*rowSize)
	var rows []Extent
	for start := Bytes(0); ; {
		encodeRequest(buf, start)
		if err := call(buf); err != nil {
			return nil, err
		}
		before := len(rows)
		var err error
		if rows, err = decodeReply(rows, buf); err != nil {
			return nil, err
		}
		if len(rows) == before {
			return rows, nil
		}
		last := rows[len(rows)-1]
		if last.Flags&FlagLast != 0 || rows[before].Logical > size {
			return rows, nil
		}
		if last.end() <= start {
			return nil, fmt.Errorf("FIEMAP from byte %d returned rows that end at byte %d", start, last.end())
		}
		start = last.end()
		if cap(rows)-len(rows) < batchRows {
			rows = slices.Grow(rows, expected(len(rows), start, size))
		}
	}
}

// expected guesses how many rows are still to come when n rows cover the file up to
// done of size, so that a list of a million is not copied over and over as it grows.
// It never says more than seven times what is there, so a bad guess costs little.
func expected(n int, done, size Bytes) int {
	guess := float64(n) * float64(max(size-done, 0)) / float64(done) * 1.1
	return max(batchRows, int(min(guess, float64(7*n))))
}
