package vmtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// FragmentedFile makes a fully written file of n blocks in n extents, or up to one
// in a hundred less, and returns its path. Two files grow in turn by one block
// each, so that each keeps the other's blocks apart, except for the few places where
// ext4 goes on after its own metadata; the second stays, as NAME.neighbour. Does
// not work on f2fs, which sorts blocks as it writes them.
func FragmentedFile(t testing.TB, dir, name string, n int, blockSize int64) string {
	t.Helper()
	path := filepath.Join(dir, name)
	var files [2]*os.File
	for i, p := range []string{path, path + ".neighbour"} {
		f, err := os.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	for i := range n {
		for _, f := range files {
			if err := unix.Fallocate(int(f.Fd()), 0, int64(i)*blockSize, blockSize); err != nil {
				t.Fatalf("fallocate block %d of %s: %v", i, f.Name(), err)
			}
		}
	}
	for i, f := range files {
		FillRandom(t, f, int64(n)*blockSize, uint64(i))
	}
	if got := CountExtents(t, path); got < n-n/100 || got > n {
		t.Fatalf("%s has %d extents, not about %d", path, got, n)
	}
	return path
}

var extentsFound = regexp.MustCompile(`: (\d+) extents? found`)

// CountExtents returns the number of extents that filefrag counts.
func CountExtents(t testing.TB, path string) int {
	t.Helper()
	// Without -v filefrag joins neighbours; -e takes away the block-map format of ext2.
	out := Must(t, "filefrag", "-e", path)
	m := extentsFound.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("filefrag: %q", out)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
