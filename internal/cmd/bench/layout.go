package main

import (
	"fmt"
	"os"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

const block = 4096

// fragmented makes a fully written file of n extents of one block each: it and
// a neighbour grow in turn, so that each keeps the other's blocks apart.
func fragmented(path string, n int) {
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

// script is how people map a file by hand.
const script = `dev=$(dmsetup deps -o devno "$2" | sed 's/.*(\(.*\), \(.*\)).*/\1:\2/')
filefrag -v "$1" | awk -v dev="$dev" '
	$1 ~ /^[0-9]+:$/ { gsub(/\.\.|:/, " "); print $2 * 8, $6 * 8, "linear", dev, $4 * 8 }
' | dmsetup create "$3"`

var took = regexp.MustCompile(`msg="kernel calls" .*took=([0-9.µa-z]+)`)

// againstScript compares map, all checks included, with the script.
func (b *bed) againstScript() {
	const n = 100_000
	defer b.host(b.disks[0])()
	file := b.path("image.img")
	fragmented(file, n)
	goal := 0.6
	if b.kernel == "uml" {
		goal = 0.2
	}
	us, them := b.sample(
		func() float64 {
			_, ms := timed(b.program, "map", "--no-guard", file, "big")
			must(b.program, "unmap", "big")
			return ms
		},
		func() float64 {
			_, ms := timed("bash", "-c", script, "-", file, "host", "big")
			must("dmsetup", "remove", "--retry", "big")
			return ms
		})
	b.report(row{What: "map / filefrag + awk + dmsetup create, 100,000 extents", Ours: us, Theirs: them, Unit: "ms", AtMost: true, Goal: goal})
	whole, kernel := []float64{}, []float64{}
	for range b.rounds {
		_, log, ms := execute(b.program, "-v", "map", "--no-guard", file, "big")
		must(b.program, "unmap", "big")
		whole = append(whole, ms)
		kernel = append(kernel, ioctlTime(log))
	}
	b.report(row{What: "map / its own ioctls, 100,000 extents", Ours: whole, Theirs: kernel, Unit: "ms", AtMost: true, Goal: 1.5})
}

// ioctlTime sums up what the log says about the time in ioctls, in milliseconds.
func ioctlTime(log string) float64 {
	found := took.FindAllStringSubmatch(log, -1)
	if found == nil {
		check(fmt.Errorf("no summary of kernel calls in the log:\n%s", log))
	}
	sum := 0.0
	for _, m := range found {
		d, err := time.ParseDuration(m[1])
		check(err)
		sum += float64(d) / float64(time.Millisecond)
	}
	return sum
}

// againstFilefrag compares the listing of a very fragmented file.
func (b *bed) againstFilefrag() {
	const n = 500_000
	defer b.host(b.disks[1])()
	file := b.path("image.img")
	sparse(file, n)
	// Counted elsewhere: a child's peak memory includes its parent's at the fork.
	var listed int
	_, err := fmt.Sscan(must("sh", "-c", `"$0" extents "$1" | tail -n +2 | wc -l`, b.program, file), &listed)
	check(err)
	if listed != n {
		check(fmt.Errorf("%d extents listed, not %d", listed, n))
	}
	var memory []float64
	us, them := b.sample(
		func() float64 {
			ms, mib := silent(b.program, "extents", file)
			memory = append(memory, mib)
			return ms
		},
		func() float64 { ms, _ := silent("filefrag", "-v", file); return ms })
	b.report(row{What: "extents / filefrag -v, 500,000 extents", Ours: us, Theirs: them, Unit: "ms", AtMost: true, Goal: 0.25})
	b.report(row{What: "extents, 500,000 extents: peak memory", Ours: memory, Unit: "MiB", AtMost: true, Goal: 100})
}
