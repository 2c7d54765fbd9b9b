//go:build vmtest

package extents_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"dmloop/extents"
	"dmloop/internal/vmtest"

	"golang.org/x/sys/unix"
)

// hosts are the file systems that layouts are read on.
var hosts = []struct {
	name, fs string
	mkfs     []string
	block    extents.Bytes
}{
	{"ext4-4k", "ext4", []string{"-b", "4096"}, 4096},
	{"ext4-1k", "ext4", []string{"-b", "1024"}, 1024},
	{"xfs-4k", "xfs", []string{"-b", "size=4096"}, 4096},
	{"xfs-1k", "xfs", []string{"-b", "size=1024"}, 1024},
	{"f2fs", "f2fs", nil, 4096},
	{"btrfs", "btrfs", nil, 4096},
}

// TestReadAgreesWithFilefrag compares every row with what filefrag(8) prints, and
// the bytes on the disk at the row's address with those of the file.
func TestReadAgreesWithFilefrag(t *testing.T) {
	for _, host := range hosts {
		t.Run(host.name, func(t *testing.T) {
			disk := vmtest.Disk(t, 0)
			vmtest.Mkfs(t, host.fs, disk, host.mkfs...)
			dir := vmtest.Mount(t, disk)
			files := makeFiles(t, dir, host.fs, int64(host.block))
			vmtest.Must(t, "sync", "-f", dir)
			for _, path := range files {
				layout := read(t, path)
				want := filefrag(t, path)
				if !slices.Equal(layout.Extents, want) {
					t.Errorf("%s: %s", filepath.Base(path), firstDifference(layout.Extents, want))
				}
				if host.fs != "btrfs" { // its addresses are no disk addresses
					compareWithDisk(t, path, disk, layout)
				}
				if again := read(t, path); !again.Equal(layout) {
					t.Errorf("%s: read twice: %s", filepath.Base(path), extents.Diff(layout, again))
				}
			}
		})
	}
}

// makeFiles makes files of all sorts of layouts and returns their paths.
func makeFiles(t *testing.T, dir, fs string, block int64) []string {
	in := func(name string) string { return filepath.Join(dir, name) }
	var files []string
	if fs != "f2fs" { // sorts blocks as it writes
		files = append(files, vmtest.FragmentedFile(t, dir, "fragmented", 3000, block))
	}
	vmtest.RandomFile(t, in("plain"), 8<<20, 1)
	vmtest.RandomFile(t, in("odd-size"), 3<<20+777, 2)
	vmtest.Must(t, "truncate", "-s", "0", in("empty"))
	vmtest.Must(t, "truncate", "-s", "4M", in("sparse"))
	for _, at := range []string{"0", "65", "66", "300", "1023"} {
		vmtest.Must(t, "dd", "if=/dev/urandom", "of="+in("sparse"), "bs=4096", "count=1", "seek="+at, "conv=notrunc", "status=none")
	}
	vmtest.Must(t, "fallocate", "-l", "4M", in("unwritten"))
	vmtest.Must(t, "dd", "if=/dev/urandom", "of="+in("unwritten"), "bs=4096", "count=3", "seek=100", "conv=notrunc", "status=none")
	vmtest.RandomFile(t, in("preallocated"), 1<<20, 3)
	vmtest.Must(t, "fallocate", "-n", "-o", "1M", "-l", "2M", in("preallocated"))
	files = append(files, in("plain"), in("odd-size"), in("empty"), in("sparse"), in("unwritten"), in("preallocated"))
	if fs == "xfs" || fs == "btrfs" {
		vmtest.Must(t, "cp", "--reflink=always", in("plain"), in("clone"))
		vmtest.Must(t, "dd", "if=/dev/urandom", "of="+in("clone"), "bs=4096", "count=2", "seek=7", "conv=notrunc", "status=none")
		files = append(files, in("clone"))
	}
	return files
}

func read(t *testing.T, path string) extents.Layout {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	layout, err := extents.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	return layout
}

// filefragRow matches "0:  0..  4095:  8192.. 12287:  4096:  1234:  last,eof".
var filefragRow = regexp.MustCompile(`(?m)^ *\d+: +(\d+)\.\. *\d+: +(\d+)\.\. *\d+: +(\d+):(?: +\d+:)? *([^:\s]*)$`)

func filefrag(t *testing.T, path string) []extents.Extent {
	t.Helper()
	var rows []extents.Extent
	for _, m := range filefragRow.FindAllStringSubmatch(vmtest.Must(t, "filefrag", "-v", "-b1", "-e", path), -1) {
		rows = append(rows, extents.Extent{
			Logical: number(t, m[1]), Physical: number(t, m[2]), Length: number(t, m[3]), Flags: parseFlags(t, m[4]),
		})
	}
	return rows
}

func number(t *testing.T, s string) extents.Bytes {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return extents.Bytes(n)
}

// parseFlags reads filefrag's names back; "eof" is its own addition.
func parseFlags(t *testing.T, names string) extents.Flags {
	var flags extents.Flags
	for name := range strings.SplitSeq(names, ",") {
		if name == "" || name == "eof" {
			continue
		}
		found := false
		for bit := extents.Flags(1); bit != 0; bit <<= 1 {
			if slices.Equal(bit.Names(), []string{name}) {
				flags, found = flags|bit, true
			}
		}
		if !found {
			t.Fatalf("filefrag prints the flag %q, which has no such name here", name)
		}
	}
	return flags
}

func firstDifference(got, want []extents.Extent) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("row %d is %+v, filefrag says %+v", i, got[i], want[i])
		}
	}
	return fmt.Sprintf("%d rows, filefrag says %d", len(got), len(want))
}

// compareWithDisk compares each written extent with the disk at its address, read
// past all caches.
func compareWithDisk(t *testing.T, path, disk string, l extents.Layout) {
	t.Helper()
	file, device := open(t, path, 0), open(t, disk, unix.O_DIRECT)
	defer file.Close()
	defer device.Close()
	for _, e := range l.Clip().Extents {
		if e.Flags&(extents.FlagUnwritten|extents.FlagInline) != 0 {
			continue
		}
		// Direct reads are in whole sectors; the last extent may end off them.
		want, sectors := make([]byte, e.Length), int(e.Length+4095)&^4095
		got, err := unix.Mmap(-1, 0, sectors, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.ReadAt(want, int64(e.Logical)); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if n, err := device.ReadAt(got, int64(e.Physical)); n < len(want) {
			t.Fatalf("%s: %d bytes at %d, %v", disk, n, e.Physical, err)
		}
		if !bytes.Equal(got[:len(want)], want) {
			t.Errorf("%s: the disk holds other bytes at %d than the file at %d", filepath.Base(path), e.Physical, e.Logical)
		}
		if err := unix.Munmap(got); err != nil {
			t.Fatal(err)
		}
	}
}

func open(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestReadOfChangingFile reads while somebody punches and fills holes: it ends every
// time, and whatever was read can be judged.
func TestReadOfChangingFile(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			disk := vmtest.Disk(t, 0)
			vmtest.Mkfs(t, fs, disk)
			path := vmtest.FragmentedFile(t, vmtest.Mount(t, disk), "file", 3000, 4096)
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			stop, stopped := make(chan struct{}), make(chan error, 1)
			go func() {
				block := make([]byte, 4096)
				for at := int64(0); ; at = (at + 17*4096) % (4000 * 4096) {
					select {
					case <-stop:
						stopped <- nil
						return
					default:
					}
					err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, 3*4096)
					if err == nil {
						_, err = f.WriteAt(block, at)
					}
					if err != nil {
						stopped <- err
						return
					}
				}
			}()
			for range 30 {
				layout := read(t, path)
				layout.Problems(4096, 1000)
				layout.Merge()
			}
			close(stop)
			if err := <-stopped; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestFullManyExtents measures reading against filefrag(8), side by side.
func TestFullManyExtents(t *testing.T) {
	const count = 100_000
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "ext4", disk, "-b", "1024", "-N", "1024")
	path := vmtest.FragmentedFile(t, vmtest.Mount(t, disk), "file", count, 1024)
	var ours, theirs []time.Duration
	memory := 0
	for range 5 {
		cmd := selfReading(path)
		start := time.Now()
		out, err := cmd.Output()
		ours = append(ours, time.Since(start))
		var rows, kib int
		if _, scanErr := fmt.Sscan(string(out), &rows, &kib); err != nil || scanErr != nil || rows < count-count/100 || rows > count {
			t.Fatalf("%q, %v", out, err)
		}
		memory = max(memory, kib)
		start = time.Now()
		vmtest.Must(t, "sh", "-c", "filefrag -v \"$0\" >/dev/null", path)
		theirs = append(theirs, time.Since(start))
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	ratio := float64(ours[2]) / float64(theirs[2])
	t.Logf("%d extents: %v and %d KiB, filefrag -v %v: ratio %.2f", count, ours[2], memory, theirs[2], ratio)
	if memory > 100<<10 {
		t.Errorf("%d KiB of memory, want less than 100 MiB", memory)
	}
}
