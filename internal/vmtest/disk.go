package vmtest

import (
	"os"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

var (
	disksMu   sync.Mutex
	disksUsed = map[string]string{} // disk -> test that has it
)

// Disks returns the guest's extra disks.
func Disks(t testing.TB) []string {
	t.Helper()
	RequireGuest(t)
	return strings.FieldsFunc(os.Getenv("DMLOOP_DISKS"), func(r rune) bool { return r == ':' })
}

// Disk returns the path of extra disk number i, wiped. It belongs to this test
// alone until the test ends.
func Disk(t testing.TB, i int) string {
	t.Helper()
	disks := Disks(t)
	if i >= len(disks) {
		t.Fatalf("disk %d wanted, the guest has %d", i, len(disks))
	}
	path := disks[i]
	disksMu.Lock()
	defer disksMu.Unlock()
	if owner := disksUsed[path]; owner != "" {
		t.Fatalf("%s is in use by %s", path, owner)
	}
	disksUsed[path] = t.Name()
	t.Cleanup(func() {
		disksMu.Lock()
		defer disksMu.Unlock()
		delete(disksUsed, path)
	})
	wipe(t, path)
	return path
}

// wipe drops a disk's content and makes sure of both ends, where file systems
// and partition tables keep what they are recognised by.
func wipe(t testing.TB, path string) {
	t.Helper()
	const end = 1 << 20
	// Exclusive: fails while anything still stands on the disk.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	discard(t, f, uint64(size))
	zeros := make([]byte, end)
	for _, off := range []int64{0, size - end} {
		if _, err := f.WriteAt(zeros, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// discard tells the host that the content is not needed, which keeps its
// sparse file small.
func discard(t testing.TB, f *os.File, size uint64) {
	t.Helper()
	span := [2]uint64{0, size}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
	if errno != 0 && errno != unix.EOPNOTSUPP {
		t.Fatalf("%s: BLKDISCARD: %v", f.Name(), errno)
	}
}

// Sectors returns the size of a block device in 512-byte sectors.
func Sectors(t testing.TB, dev string) int64 {
	t.Helper()
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	return size / 512
}
