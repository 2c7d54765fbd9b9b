//go:build vmtest

package main

import (
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
)

// writer writes stamped blocks to a device, direct and at random places, and reads
// some of them again, until it gets an error or is stopped.
type writer struct {
	failed     chan struct{} // closed at the first error
	firstError time.Time
	foreign    atomic.Int64 // blocks that had another stamp than the last one written there
	quit, done chan struct{}
}

// stampMagic begins every block that a writer writes; the time follows.
const stampMagic = 0x646d6c6f6f705f21

const block = 4096

// readEvery is the number of writes for each block that is read again.
const readEvery = 4

func startWriter(t *testing.T, dev string, still bool) *writer {
	t.Helper()
	first := int64(0)
	if still {
		first = 1 << 20 / block
	}
	fd, err := unix.Open(dev, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{failed: make(chan struct{}), quit: make(chan struct{}), done: make(chan struct{})}
	buf := aligned(t, block)
	go func() {
		defer close(w.done)
		defer unix.Munmap(buf)
		defer unix.Close(fd)
		stamps := make([]uint64, imageSize/block)
		for n := 1; ; n++ {
			select {
			case <-w.quit:
				return
			default:
			}
			time.Sleep(200 * time.Microsecond) // leaves the only processor of some guests to others
			at := first + rand.Int64N(imageSize/block-first)
			if err := w.touch(fd, buf, stamps, at, n%readEvery == 0); err != nil {
				w.firstError = time.Now()
				close(w.failed)
				return
			}
		}
	}()
	t.Cleanup(w.stop)
	return w
}

// touch writes one block, or reads it if it was written before and compares.
func (w *writer) touch(fd int, buf []byte, stamps []uint64, at int64, again bool) error {
	if again && stamps[at] != 0 {
		if _, err := unix.Pread(fd, buf, at*block); err != nil {
			return err
		}
		if binary.LittleEndian.Uint64(buf) != stampMagic || binary.LittleEndian.Uint64(buf[8:]) != stamps[at] {
			w.foreign.Add(1)
		}
		return nil
	}
	stamps[at] = uint64(time.Now().UnixNano())
	binary.LittleEndian.PutUint64(buf, stampMagic)
	binary.LittleEndian.PutUint64(buf[8:], stamps[at])
	_, err := unix.Pwrite(fd, buf, at*block)
	return err
}

// stop ends the writer. On a suspended device that would take forever.
func (w *writer) stop() {
	select {
	case <-w.quit:
	default:
		close(w.quit)
	}
	select {
	case <-w.done:
	case <-time.After(5 * time.Second):
	}
}

// aligned returns memory that direct I/O accepts.
func aligned(t *testing.T, size int) []byte {
	t.Helper()
	buf, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	return buf
}

// writtenSince counts the blocks in pieces of the disk whose stamp is later than
// when.
func writtenSince(t *testing.T, disk string, pieces []dmtable.Segment, when time.Time) (count int) {
	t.Helper()
	fd, err := unix.Open(disk, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf := aligned(t, block)
	defer unix.Munmap(buf)
	for _, p := range pieces {
		for at := int64(p.Start) * 512; at+block <= int64(p.End())*512; at += block {
			if _, err := unix.Pread(fd, buf, at); err != nil {
				t.Fatal(err)
			}
			if binary.LittleEndian.Uint64(buf) == stampMagic && int64(binary.LittleEndian.Uint64(buf[8:])) > when.UnixNano() {
				count++
			}
		}
	}
	return count
}
