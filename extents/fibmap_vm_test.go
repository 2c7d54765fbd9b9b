//go:build vmtest

package extents_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"dmloop/extents"
	"dmloop/internal/vmtest"
)

// byBlock are the file systems whose layouts are read block by block, with clusters of
// several sizes, from one sector to more than a page.
var byBlock = []struct {
	name, fs string
	mkfs     []string
	cluster  int
}{
	{"vfat-512", "vfat", []string{"-F", "32", "-s", "1", "-a"}, 512},
	{"vfat-4k", "vfat", []string{"-F", "32", "-s", "8"}, 4096},
	{"vfat-32k", "vfat", []string{"-F", "16", "-s", "64"}, 32768},
	{"exfat-512", "exfat", []string{"-c", "512"}, 512},
	{"exfat-32k", "exfat", []string{"-c", "32K"}, 32768},
}

// Files that were written in turn lie in many pieces. Every row is what filefrag(8) makes
// of FIBMAP, and the bytes on the disk at its address are those of the file.
func TestReadByBlock(t *testing.T) {
	for _, host := range byBlock {
		if !vmtest.HasFilesystem(t, host.fs) {
			continue
		}
		t.Run(host.name, func(t *testing.T) {
			disk := vmtest.DmsetupCreate(t, "small", fmt.Sprintf("0 %d linear %s 0\n", 200<<20/512, vmtest.Disk(t, 0)))
			vmtest.Mkfs(t, host.fs, disk, host.mkfs...)
			dir := vmtest.Mount(t, disk, vmtest.MountOptions(host.fs)...)
			paths := []string{filepath.Join(dir, "one"), filepath.Join(dir, "two"), filepath.Join(dir, "three")}
			inTurn(t, paths, host.cluster, 300)
			long := filepath.Join(dir, "long")
			vmtest.RandomFile(t, long, 9<<20+3*512, 1)
			odd := filepath.Join(dir, "odd")
			vmtest.RandomFile(t, odd, 12345, 2)
			empty := filepath.Join(dir, "empty")
			vmtest.Must(t, "touch", empty)
			vmtest.Must(t, "sync", "-f", dir)
			for i, path := range append(paths, long, odd, empty) {
				l := read(t, path)
				if i == 0 && len(l.Extents) < 100 {
					t.Errorf("%d pieces: the file is in one", len(l.Extents))
				}
				if p := l.Problems(512, 0); len(p) > 0 && path != odd && path != empty {
					t.Errorf("%s: %v", path, p[0])
				}
				want := plainRows(filefrag(t, path))
				if got := plainRows(l.Extents); !slices.Equal(got, want) {
					t.Errorf("%s: %s", filepath.Base(path), firstDifference(got, want))
				}
				compareWithDisk(t, path, disk, l)
			}
		})
	}
}

// inTurn writes n pieces of size bytes to each of the files, one after the other.
func inTurn(t *testing.T, paths []string, size, n int) {
	t.Helper()
	files := make([]*os.File, len(paths))
	for i, path := range paths {
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	piece := make([]byte, size)
	for i := range n {
		for k, f := range files {
			if k == 2 && i%7 != 0 {
				continue
			}
			for j := range piece {
				piece[j] = byte(i + 31*k + j/512 + j)
			}
			if _, err := f.Write(piece); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// plainRows are the rows as far as both programs agree on what a row is: without flags, of
// a file's own length in whole sectors, and one where they go on.
func plainRows(rows []extents.Extent) []extents.Extent {
	var out []extents.Extent
	for _, e := range rows {
		e.Flags = 0
		if n := len(out); n > 0 && out[n-1].Logical+out[n-1].Length == e.Logical && out[n-1].Physical+out[n-1].Length == e.Physical {
			out[n-1].Length += e.Length
			continue
		}
		out = append(out, e)
	}
	return out
}
