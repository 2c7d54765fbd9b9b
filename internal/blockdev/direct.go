package blockdev

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"dmloop/internal/ioctl"
)

// usualAlignment suits the logical blocks of every disk up to Linux 6.14. Newer kernels have
// disks with larger ones.
const usualAlignment = 4096

// sectorSizeGet takes a pointer to an int (block/ioctl.c).
var sectorSizeGet = ioctl.Request{Number: unix.BLKSSZGET, Name: "BLKSSZGET"}

// directReader reads a device past its page cache. A device below a shim has a cache
// of its own, in which what is written through the shim does not appear.
type directReader struct {
	file      *os.File
	alignment int
}

// openDirect opens a device. A file system that has no direct reads, such as the one
// that tests keep their disks on, gives cached ones.
func openDirect(path string) (*directReader, error) {
	const flags = os.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		f, err = os.OpenFile(path, flags, 0)
	}
	if err != nil {
		return nil, err
	}
	block := int32(usualAlignment)
	if err := ioctl.Pointer(int(f.Fd()), sectorSizeGet, &block); err != nil { // no device, as in tests
		block = usualAlignment
	}
	return &directReader{f, max(int(block), usualAlignment)}, nil
}

// Close closes the device.
func (d *directReader) Close() error { return d.file.Close() }

// ReadAt implements io.ReaderAt with reads of whole, aligned blocks.
func (d *directReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d", off)
	}
	alignment := d.alignment
	start := off / int64(alignment) * int64(alignment)
	skip := int(off - start)
	size := (skip + len(p) + alignment - 1) / alignment * alignment
	buf, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, os.NewSyscallError("mmap", err)
	}
	defer unix.Munmap(buf)
	got := 0
	for got < size && err == nil {
		var n int
		n, err = unix.Pread(int(d.file.Fd()), buf[got:], start+int64(got))
		if n <= 0 {
			break
		}
		got += n
		if n%alignment != 0 {
			break // the end of the device
		}
	}
	if err != nil {
		return 0, &os.PathError{Op: "read", Path: d.file.Name(), Err: err}
	}
	n := copy(p, buf[min(skip, got):got])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
