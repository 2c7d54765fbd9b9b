package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// A job is what fio does, the same on both sides.
type job struct {
	name, mode, block string
	depth             int
	engine            string
}

// fio runs a job and returns thousands of operations a second. Offset and size
// are bytes; size 0 is the whole device.
func (j job) fio(dev string, offset, size int64) float64 {
	args := []string{
		"--name=x", "--filename=" + dev, "--direct=1", "--rw=" + j.mode, "--bs=" + j.block,
		"--ioengine=" + j.engine, fmt.Sprintf("--iodepth=%d", j.depth), "--runtime=2", "--time_based",
		"--output-format=json", "--randseed=1", "--norandommap",
	}
	if size > 0 {
		args = append(args, fmt.Sprintf("--offset=%d", offset), fmt.Sprintf("--size=%d", size))
	}
	var out struct {
		Jobs []struct {
			Read, Write struct{ IOPS float64 }
		}
	}
	text := must("fio", args...)
	check(json.Unmarshal([]byte(text[strings.Index(text, "{"):]), &out))
	return (out.Jobs[0].Read.IOPS + out.Jobs[0].Write.IOPS) / 1000
}

const imageSize = 256 << 20

// againstBase compares a mapped image with the very blocks of the disk below it. In
// qemu the first disk is as quick as the emulated processor, which is all that is
// measured then; the goal is about the third.
func (b *bed) againstBase() {
	if b.kernel == "uml" {
		b.baseOn("", b.disks[0], 0.97)
		return
	}
	b.baseOn("disk in memory, ", b.disks[0], 0)
	b.baseOn("", b.disks[2], 0.97)
}

func (b *bed) baseOn(name, disk string, goal float64) {
	defer b.host(disk)()
	file := b.path("image.img")
	must(b.program, "create", file, fmt.Sprint(imageSize))
	at, length, below := b.largest(must(b.program, "table", file))
	dev := strings.TrimSpace(must(b.program, "map", "--no-guard", file))
	defer must(b.program, "unmap", file)
	for _, j := range []job{
		{"random read, 4 KiB, depth 32", "randread", "4k", 32, "libaio"},
		{"random write, 4 KiB, depth 32", "randwrite", "4k", 32, "libaio"},
		{"read, 1 MiB, depth 8", "read", "1m", 8, "libaio"},
		{"write, 1 MiB, depth 8", "write", "1m", 8, "libaio"},
	} {
		us, them := b.sample(
			func() float64 { return j.fio(dev, at, length) },
			func() float64 { return j.fio(disk, below, length) })
		b.report(row{What: "mapped / base device: " + name + j.name, Ours: us, Theirs: them, Unit: "kIOPS", Goal: goal})
	}
}

// largest returns the largest row of a table, in bytes: where it lies in the
// device, its length, and where it lies on the disk.
func (b *bed) largest(table string) (at, length, below int64) {
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

// againstLoop compares a mapped image with a loop device over another image of
// the same file system, on a ramdisk and on the disk.
func (b *bed) againstLoop() {
	must("modprobe", "brd", "rd_nr=1", fmt.Sprintf("rd_size=%d", 3*imageSize/1024))
	for _, on := range []struct{ name, dev string }{{"ramdisk", "/dev/ram0"}, {"disk", b.disks[0]}} {
		b.loopOn(on.name, on.dev)
	}
	must("modprobe", "-r", "brd")
}

func (b *bed) loopOn(name, dev string) {
	defer b.host(dev)()
	file, other := b.path("image.img"), b.path("other.img")
	must(b.program, "create", file, fmt.Sprint(imageSize))
	must(b.program, "create", other, fmt.Sprint(imageSize))
	mapped := strings.TrimSpace(must(b.program, "map", "--no-guard", file))
	defer must(b.program, "unmap", file)
	loop := strings.TrimSpace(must("losetup", "--show", "--direct-io=on", "-f", other))
	defer must("losetup", "-d", loop)
	direct, err := os.ReadFile("/sys/block/" + strings.TrimPrefix(loop, "/dev/") + "/loop/dio")
	check(err)
	if strings.TrimSpace(string(direct)) != "1" {
		check(fmt.Errorf("the loop device does no direct I/O"))
	}
	for _, j := range []struct {
		job
		goal float64
	}{
		{job{"random read, 4 KiB, depth 1", "randread", "4k", 1, "psync"}, 3},
		{job{"random write, 4 KiB, depth 1", "randwrite", "4k", 1, "psync"}, 0},
		{job{"random read, 4 KiB, depth 32", "randread", "4k", 32, "libaio"}, 0},
		{job{"read, 1 MiB, depth 8", "read", "1m", 8, "libaio"}, 0},
	} {
		us, them := b.sample(
			func() float64 { return j.fio(mapped, 0, imageSize) },
			func() float64 { return j.fio(loop, 0, imageSize) })
		b.report(row{What: fmt.Sprintf("mapped / loop with direct I/O, %s: %s", name, j.name), Ours: us, Theirs: them, Unit: "kIOPS", Goal: j.goal})
	}
}
