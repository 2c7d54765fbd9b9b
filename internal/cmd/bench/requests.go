package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// A job is what fio does, the same on all sides.
type job struct {
	name, mode, block string
	engine            string
	depth, jobs       int
	full              bool // the processor is: a request costs the instructions from one to the next
}

// fio runs a job and returns the time of a request, in nanoseconds. Offset and size are bytes.
func (j job) fio(dev string, offset, size int64) float64 {
	args := []string{
		"--name=x", "--filename=" + dev, "--direct=1", "--rw=" + j.mode, "--bs=" + j.block,
		"--ioengine=" + j.engine, fmt.Sprintf("--iodepth=%d", j.depth), "--runtime=200ms", "--time_based",
		"--output-format=json", "--randseed=1", "--norandommap", "--thread", "--group_reporting",
		fmt.Sprintf("--numjobs=%d", max(j.jobs, 1)), fmt.Sprintf("--offset=%d", offset), fmt.Sprintf("--size=%d", size),
	}
	var out struct {
		Jobs []struct {
			Read, Write struct{ IOPS float64 }
		}
	}
	text := must("fio", args...)
	check(json.Unmarshal([]byte(text[strings.Index(text, "{"):]), &out))
	return 1e9 / (out.Jobs[0].Read.IOPS + out.Jobs[0].Write.IOPS)
}

// A target is one way to the same kind of blocks.
type target struct {
	name, dev    string
	offset, size int64 // bytes
}

const imageSize = 48 << 20

// The targets' names.
const (
	onDisk   = "disk"
	onMapped = "mapped"
	onFile   = "file, O_DIRECT"
	onLoop   = "loop, direct I/O"
)

// targets makes an xfs with four ways to blocks that have all been written: an image that
// is mapped, the very blocks of it on the disk, a file, and a loop device over one more.
func targets(dev string) (all []target, undo func()) {
	leave := host("xfs", dev)
	for _, name := range []string{"image", "file", "loop"} {
		must("dmloop", "create", path(name), fmt.Sprint(imageSize))
	}
	at, length, below := largest(must("dmloop", "table", path("image")))
	mapped := strings.TrimSpace(must("dmloop", "map", "--no-guard", "--gate=none", "--unsafe", path("image")))
	loop := strings.TrimSpace(must("losetup", "--show", "--direct-io=on", "-f", path("loop")))
	direct, err := os.ReadFile("/sys/block/" + strings.TrimPrefix(loop, "/dev/") + "/loop/dio")
	check(err)
	if strings.TrimSpace(string(direct)) != "1" {
		check(fmt.Errorf("the loop device does no direct I/O"))
	}
	all = []target{{onDisk, dev, below, length}, {onMapped, mapped, at, length}, {onFile, path("file"), 0, length}, {onLoop, loop, 0, length}}
	return all, func() {
		must("losetup", "-d", loop)
		must("dmloop", "unmap", "image")
		leave()
	}
}

// largest returns the largest row of a table, in bytes: where it lies in the device, its
// length, and where it lies on the disk.
func largest(table string) (at, length, below int64) {
	for line := range strings.Lines(table) {
		var start, sectors, offset int64
		var disk string
		_, err := fmt.Sscanf(line, "%d %d linear %s %d", &start, &sectors, &disk, &offset)
		check(err)
		if sectors*512 > length {
			at, length, below = start*512, sectors*512, offset*512
		}
	}
	return at, length, below
}

// on is a job on one target.
func (j job) on(t target) thing {
	unit := microseconds
	if j.full {
		unit = instructions
	}
	return thing{j.name + ": " + t.name, unit, func() float64 {
		took := j.fio(t.dev, t.offset, t.size)
		if !j.full {
			took /= 1000
		}
		return took
	}}
}

// requestJobs are about one request.
var requestJobs = []job{
	{name: "random read, 4 KiB, one by one", mode: "randread", block: "4k", engine: "psync", depth: 1},
	{name: "random read, 4 KiB, 32 at a time", mode: "randread", block: "4k", engine: "io_uring", depth: 32, full: true},
	{name: "random write, 4 KiB, 32 at a time", mode: "randwrite", block: "4k", engine: "io_uring", depth: 32, full: true},
	{name: "read, 128 KiB, 32 at a time", mode: "read", block: "128k", engine: "io_uring", depth: 32, full: true},
}

// requests measures what a request costs on each of the ways.
func (b *bed) requests() {
	for _, d := range []struct {
		name    string
		latency time.Duration
		jobs    []job
	}{{"", nvme, requestJobs}, {"seeking disk, ", seek, requestJobs[:1]}} {
		dev, remove := disk(512, d.latency)
		all, undo := targets(dev)
		for _, j := range d.jobs {
			j.name = d.name + j.name
			b.jobOn(j, all)
		}
		undo()
		remove()
	}
}

// jobOn measures one job on all targets. A run of fio is a median already.
func (b *bed) jobOn(j job, all []target) {
	var things []thing
	for _, t := range all {
		things = append(things, j.on(t))
	}
	rounds := b.rounds
	b.rounds = 1
	b.measure(things...)
	b.rounds = rounds
}

// jobs measures a workload of many jobs: twelve, that read or write, at random or in order,
// one request each or sixteen.
func (b *bed) jobs() {
	dev, remove := disk(512, nvme)
	defer remove()
	all, undo := targets(dev)
	defer undo()
	for _, mode := range []struct{ mode, name string }{{"randread", "random read"}, {"randwrite", "random write"}, {"read", "read"}, {"write", "write"}} {
		for _, engine := range []struct {
			engine string
			depth  int
		}{{"psync", 1}, {"io_uring", 16}} {
			b.jobOn(job{name: fmt.Sprintf("12 jobs, %s, %s", mode.name, engine.engine), mode: mode.mode, block: "4k", engine: engine.engine,
				depth: engine.depth, jobs: 12, full: true}, all)
		}
	}
}

// tables measures a random request by the number of rows in the table.
func (b *bed) tables() {
	dev, remove := disk(1500, nvme)
	defer remove()
	defer host("ext4", dev)()
	j := requestJobs[1]
	for _, n := range []int{1, 1000, 100_000} {
		name := fmt.Sprintf("%d.img", n)
		// All images are of the same size, so that the same requests go to them.
		if n == 1 {
			must("dmloop", "create", path(name), fmt.Sprint(100_000*block))
		} else {
			fragmented(path(name), n, 100_000/int64(n)*block)
		}
		mapped := strings.TrimSpace(must("dmloop", "map", "--no-guard", "--gate=none", path(name)))
		j.name = fmt.Sprintf("random read, 4 KiB, of %d extents", n)
		b.jobOn(j, []target{{onMapped, mapped, 0, 100_000 * block}})
		must("dmloop", "unmap", mapped)
		check(os.RemoveAll(path(name)))
		check(os.RemoveAll(path(name) + ".neighbour"))
	}
}
