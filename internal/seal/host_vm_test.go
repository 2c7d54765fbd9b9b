//go:build vmtest

package seal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/internal/btrfs"
	"dmloop/internal/fstype"
	"dmloop/internal/swap"
	"dmloop/internal/vmtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	vmtest.Main(m)
}

// hostKind is a file system as the tests make it.
type hostKind struct {
	name, fstype string
	mkfs         []string
	block        int64 // 0: as statfs(2) says
}

// hosts are the host file systems that sealing is for.
var hosts = slices.DeleteFunc([]hostKind{
	{"ext4", "ext4", []string{"-b", "4096"}, 0},
	{"ext4-1k", "ext4", []string{"-b", "1024"}, 0},
	{"ext4-2k", "ext4", []string{"-b", "2048"}, 0},
	{"xfs", "xfs", nil, 0},
	{"xfs-1k", "xfs", []string{"-b", "size=1024"}, 0},
	{"f2fs", "f2fs", nil, 0},
	{"btrfs", "btrfs", nil, 0},
	{"vfat", "vfat", []string{"-F", "32", "-s", "4", "-a"}, 512}, // clusters of half a page, off the pages
	{"exfat", "exfat", nil, 512},
	{"ntfs3", "ntfs3", nil, 0},
}, func(k hostKind) bool { return !vmtest.CanMake(k.fstype) })

// host is a mounted file system and the device that it is mounted from.
type host struct {
	t                testing.TB
	fstype, dev, dir string
	block            int64
}

// eachHost runs a test on a fresh file system of every kind that this kernel has.
func eachHost(t *testing.T, f func(t *testing.T, h host)) {
	for _, k := range hosts {
		if !vmtest.HasFilesystem(t, k.fstype) {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			disk := vmtest.Disk(t, 0)
			vmtest.Mkfs(t, k.fstype, disk, k.mkfs...)
			dir := vmtest.Mount(t, disk, vmtest.MountOptions(k.fstype)...)
			f(t, host{t, k.fstype, disk, dir, k.blockSize(t, dir)})
		})
	}
}

// bare reports whether files have no attributes there, so that somebody has to say that an
// image is sealed.
func (h host) bare() bool { return fstype.Of(h.fstype).Bare }

// options are those of an image that the test has written itself.
func (h host) options(f *os.File) Options {
	o := Options{Said: h.bare(), Written: h.bare(), Layout: h.layout(f)}
	if h.bare() && h.dev != "" {
		o.Device = func() error {
			d, err := os.Open(h.dev)
			if err != nil {
				return err
			}
			return errors.Join(d.Sync(), d.Close())
		}
	}
	return o
}

// blockSize returns the size of the blocks of a file on a mounted file system, in bytes.
func (k hostKind) blockSize(t testing.TB, dir string) int64 {
	t.Helper()
	if k.block > 0 {
		return k.block
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Bsize
}

// create makes an image of random bytes, with copy-on-write off on btrfs.
func (h host) create(name string, size int64, seed uint64) string {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		h.t.Fatal(err)
	}
	if h.fstype == "btrfs" {
		vmtest.Must(h.t, "chattr", "+C", path)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	_, err = f.WriteAt(image(int(size), seed), 0)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// open opens a file for reading and writing until the test ends.
func (h host) open(path string) *os.File {
	h.t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { f.Close() })
	return f
}

// layout returns the function that reads the layout with device addresses.
func (h host) layout(f *os.File) LayoutFunc {
	return func() (extents.Layout, error) {
		l, err := extents.Read(f)
		if err != nil || h.fstype != "btrfs" {
			return l, err
		}
		chunks, err := btrfs.ReadChunks(f)
		if err != nil {
			return l, err
		}
		fs, err := btrfs.ReadFilesystem(f)
		if err != nil {
			return l, err
		}
		return btrfs.Translate(l, chunks, fs.Device)
	}
}

// seal seals an image and proves what can be proved of the result.
func (h host) seal(f *os.File) Record {
	h.t.Helper()
	r, err := Seal(f, h.options(f))
	if err != nil {
		h.t.Fatal(err)
	}
	st, err := Inspect(f, h.bare())
	if err != nil || st.Kind != Sealed || st.Record != r {
		h.t.Fatalf("%+v, %v", st, err)
	}
	return r
}

// claim has the kernel hold the image until the test ends.
func (h host) claim(f *os.File) {
	h.t.Helper()
	if err := swap.Claim(f); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if err := swap.Release(f); err != nil && !errors.Is(err, swap.ErrNotActive) && !errors.Is(err, unix.EBADF) {
			h.t.Error(err)
		}
	})
	if active, err := swap.Active(f); err != nil || !active {
		h.t.Fatalf("active: %v, %v", active, err)
	}
}

// shown returns the layout of what the device would show, proved disjoint from
// what the kernel may swap to.
func (h host) shown(f *os.File, r Record) extents.Layout {
	h.t.Helper()
	l, err := h.layout(f)()
	if err != nil {
		h.t.Fatal(err)
	}
	content, err := Content(l, r)
	if err != nil {
		h.t.Fatal(err)
	}
	slots, err := SwapPhysical(l, r)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := Disjoint(content, slots); err != nil {
		h.t.Fatal(err)
	}
	if p := content.Problems(512, 0); len(p) > 0 {
		h.t.Fatal(p)
	}
	return content
}

// raw reads the content from the device, past file system and page cache.
func (h host) raw(l extents.Layout) []byte {
	h.t.Helper()
	fd, err := unix.Open(h.dev, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer unix.Close(fd)
	out := make([]byte, l.Size)
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		h.t.Fatal(err)
	}
	defer unix.Munmap(buf)
	for _, e := range l.Extents {
		for e.Length > 0 {
			n := min(e.Length, extents.Bytes(len(buf)))
			if got, err := unix.Pread(fd, buf[:n], int64(e.Physical)); err != nil || got != int(n) {
				h.t.Fatalf("read %d bytes at %d of %s: %d, %v", n, e.Physical, h.dev, got, err)
			}
			copy(out[e.Logical:], buf[:n])
			e.Logical, e.Physical, e.Length = e.Logical+n, e.Physical+n, e.Length-n
		}
	}
	return out
}

// writeRaw changes the content on the device as a mapping does.
func (h host) writeRaw(l extents.Layout, content []byte) {
	h.t.Helper()
	var table []extents.Extent
	table = append(table, l.Extents...)
	slices.Reverse(table)
	for _, e := range table {
		piece := content[e.Logical : e.Logical+e.Length]
		tmp := filepath.Join(h.t.TempDir(), "piece")
		if err := os.WriteFile(tmp, piece, 0o600); err != nil {
			h.t.Fatal(err)
		}
		vmtest.Must(h.t, "dd", "if="+tmp, "of="+h.dev, "bs=512", fmt.Sprintf("seek=%d", e.Physical/512),
			"oflag=direct", "conv=notrunc,fsync", "status=none")
	}
	// What the page cache has of the file is old now; cp(1) would read it.
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		h.t.Fatal(err)
	}
}

// fileContent returns what a file holds.
func fileContent(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sameFile fails when the file does not hold want.
func sameFile(t testing.TB, path string, want []byte) {
	t.Helper()
	got := fileContent(t, path)
	if !bytes.Equal(got, want) {
		t.Fatalf("%s has %d bytes that differ from the %d expected", path, len(got), len(want))
	}
}

// noAttribute fails when getfattr sees an attribute of ours.
func noAttribute(t testing.TB, path string) {
	t.Helper()
	if out := vmtest.Run(t, "getfattr", "--absolute-names", "-d", "-m", "-", path).Stdout; strings.Contains(out, "dmloop") {
		t.Fatalf("%s still has %s", path, out)
	}
	if _, err := os.Lstat(path + IntentSuffix); err == nil {
		t.Fatalf("%s still has a file beside it", path)
	}
}
