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
	var batches [][]Extent
	for start := Bytes(0); ; {
		encodeRequest(buf, start)
		if err := call(buf); err != nil {
			return nil, err
		}
		rows, err := decodeReply(buf)
		if err != nil {
			return nil, err
		}
		if len(rows) == 0 {
			break
		}
		batches = append(batches, rows)
		last := rows[len(rows)-1]
		if last.Flags&FlagLast != 0 || rows[0].Logical > size {
			break
		}
		if last.end() <= start {
			return nil, fmt.Errorf("FIEMAP from byte %d returned rows that end at byte %d", start, last.end())
		}
		start = last.end()
	}
	return slices.Concat(batches...), nil
}
