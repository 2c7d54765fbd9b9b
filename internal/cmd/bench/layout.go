package main

import (
	"os"

	"golang.org/x/sys/unix"
)

const block = 4096

// fragmented makes a fully written file of n extents of one block each: it and a neighbour
// grow in turn, so that each keeps the other's blocks apart.
func fragmented(path string, n int, block int64) {
	files := [2]*os.File{}
	for i, p := range []string{path, path + ".neighbour"} {
		f, err := os.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		check(err)
		defer f.Close()
		files[i] = f
	}
	for i := range n {
		for _, f := range files {
			check(unix.Fallocate(int(f.Fd()), 0, int64(i)*block, block))
		}
	}
	data := make([]byte, 1<<20)
	for off := int64(0); off < int64(n)*block; off += int64(len(data)) {
		_, err := files[0].WriteAt(data[:min(int64(len(data)), int64(n)*block-off)], off)
		check(err)
	}
	check(files[0].Sync())
}

// sparse makes a file of n extents of one block each with a hole after each.
func sparse(path string, n int) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	check(err)
	defer f.Close()
	for i := range n {
		check(unix.Fallocate(int(f.Fd()), 0, int64(i)*2*block, block))
	}
	check(f.Sync())
}
