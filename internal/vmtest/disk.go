package vmtest

import (
	"io"
	"os"
	"strings"
	"sync"
	"testing"

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

// wipe clears both ends of a disk, where file systems and partition tables
// keep what they are recognised by. Old data stays in between on purpose: a
// test that reads blocks it has no right to is to see something.
func wipe(t testing.TB, path string) {
	t.Helper()
	const end = 1 << 20
	// Exclusive: fails while anything still stands on the disk.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
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

// Sectors returns the size of a block device in 512-byte sectors.
func Sectors(t testing.TB, dev string) int64 {
	t.Helper()
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	return size / 512
}
