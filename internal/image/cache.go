package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"time"

	"dmloop/extents"

	"golang.org/x/sys/unix"
)

// CacheState counts the image's pages in the page cache.
type CacheState struct {
	Cached    uint64 `json:"cached"`    // in memory
	Dirty     uint64 `json:"dirty"`     // of those, changed since they were read or written
	Writeback uint64 `json:"writeback"` // of those, on their way to the disk
	Exact     bool   `json:"exact"`     // false: the kernel counts only Cached, any of which may be dirty
}

// Clean reports whether no page can be written to the disk later.
func (c CacheState) Clean() bool {
	return c.Dirty == 0 && c.Writeback == 0 && (c.Exact || c.Cached == 0)
}

// Problems returns the problem dirty-cache unless the cache is clean.
func (c CacheState) Problems() []extents.Problem {
	if c.Clean() {
		return nil
	}
	message := fmt.Sprintf("%d pages of the file in memory are changed and %d are being written, even after a flush: somebody writes to it", c.Dirty, c.Writeback)
	if !c.Exact {
		message = fmt.Sprintf("%d pages of the file stay in memory, and this kernel does not say whether they are changed", c.Cached)
	}
	return []extents.Problem{{
		Rule:    extents.DirtyCache,
		Message: message,
	}}
}

// dropAttempts bounds DropCache. The kernel leaves out pages that are locked or
// referenced at the moment, which a second later they are not.
const dropAttempts = 6

// DropCache writes the image's dirty pages back and takes all its pages out of the
// page cache, then returns what is left: pages that somebody has mapped or
// is writing to. It tries for less than a second, counting apart, which the end of ctx ends.
func (i *Image) DropCache(ctx context.Context) (CacheState, error) {
	for attempt := 1; ; attempt++ {
		if err := i.file.Sync(); err != nil {
			return CacheState{}, err
		}
		if err := unix.Fadvise(i.fd(), 0, 0, unix.FADV_DONTNEED); err != nil {
			return CacheState{}, i.wrap(os.NewSyscallError("posix_fadvise", err))
		}
		state, err := i.CacheState(ctx)
		if err != nil || state.Cached == 0 || attempt == dropAttempts {
			return state, err
		}
		time.Sleep(time.Duration(attempt) * 20 * time.Millisecond)
	}
}

// CacheState counts the pages with cachestat(2) (Linux 6.5). Where that is missing,
// or refused because the caller neither owns the file nor could write to it (newer
// kernels), it counts with mincore(2), which for such a caller says that every page is
// in memory: unknown counts as dirty. That takes as long as the file's data is large: a
// second for some gigabytes.
func (i *Image) CacheState(ctx context.Context) (CacheState, error) {
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(i.fd()), &unix.CachestatRange{}, &stat, 0)
	switch {
	case err == nil:
		return CacheState{Cached: stat.Cache, Dirty: stat.Dirty, Writeback: stat.Writeback, Exact: true}, nil
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		cached, err := i.mincore(ctx)
		return CacheState{Cached: cached}, err
	}
	return CacheState{}, i.wrap(os.NewSyscallError("cachestat", err))
}

// mincoreChunk is how much of the image is mapped at a time, in bytes.
const mincoreChunk = 256 << 20

// mincore counts the image's pages in memory where it has data. Over a hole there can
// only be zeros that were read: what somebody writes there gets a block, or the promise
// of one, at once, and is data.
func (i *Image) mincore(ctx context.Context) (uint64, error) {
	st, err := i.statx(unix.STATX_SIZE)
	if err != nil {
		return 0, err
	}
	page := uint64(os.Getpagesize())
	marks, err := unix.Mmap(-1, 0, mincoreChunk/int(page), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return 0, os.NewSyscallError("mmap", err)
	}
	defer unix.Munmap(marks)
	var cached uint64
	for offset := uint64(0); ; {
		begin, end, err := i.data(offset, st.Size)
		if err != nil {
			return 0, i.wrap(err)
		}
		if begin >= end {
			return cached, nil
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		offset = begin &^ (page - 1)
		length := min(end-offset, mincoreChunk)
		if err := i.mincoreChunk(offset, length, marks); err != nil {
			return 0, i.wrap(err)
		}
		for _, mark := range marks[:(length+page-1)/page] {
			cached += uint64(mark & 1)
		}
		offset += length
	}
}

// data returns the next part of the file with data, from offset on and before size; an
// empty one when there is none. A file system that does not tell holes has data everywhere.
func (i *Image) data(offset, size uint64) (begin, end uint64, err error) {
	if offset >= size {
		return size, size, nil
	}
	from, err := unix.Seek(i.fd(), int64(offset), unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return offset, size, nil
	case err != nil:
		return 0, 0, os.NewSyscallError("lseek SEEK_DATA", err)
	}
	to, err := unix.Seek(i.fd(), from, unix.SEEK_HOLE)
	if errors.Is(err, unix.ENXIO) { // it was cut since
		return size, size, nil
	}
	if err != nil {
		return 0, 0, os.NewSyscallError("lseek SEEK_HOLE", err)
	}
	return uint64(from), min(uint64(to), size), nil
}

// mincoreChunk sets a byte of marks for each page of length bytes from offset. Both
// buffers are mappings of our own, which Go's memory management does not know, so
// their addresses stay true as plain numbers.
func (i *Image) mincoreChunk(offset, length uint64, marks []byte) error {
	chunk, err := unix.Mmap(i.fd(), int64(offset), int(length), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	defer unix.Munmap(chunk)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, reflect.ValueOf(chunk).Pointer(), uintptr(length), reflect.ValueOf(marks).Pointer())
	if errno != 0 {
		return os.NewSyscallError("mincore", errno)
	}
	return nil
}
