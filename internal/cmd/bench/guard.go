package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/dm"
)

// trials is how often each change is made in each pass.
const trials = 100

// latency measures from the end of a change below a mapping until the mapping fails its
// first read.
func (b *bed) latency() {
	dev, remove := disk(512, nvme)
	defer remove()
	defer host("ext4", dev)()
	img := path("image.img")
	must("dmloop", "create", img, "16M")
	must("dmloop", "create", path("other.img"), "1M")
	must("dmloop", "map", "--gate=none", path("other.img"), "other") // keeps the guard
	conn, err := dm.Open()
	check(err)
	defer conn.Close()
	here, err := conn.Table(dm.ByName("host"))
	check(err)
	// The same blocks by way of another device, as they would be after pvmove.
	var elsewhere dmtable.Table
	alias := func() {
		must("dmsetup", "create", "alias", "--noudevsync", "--table", here.String())
		elsewhere = dmtable.Table{{Start: 0, Length: here[0].Length, Target: dmtable.Linear, Args: numbers("/dev/mapper/alias") + " 0"}}
	}
	reload := func(t dmtable.Table) {
		_, err := conn.ReplaceNow(dm.ByName("host"), t, 0)
		check(err)
	}
	for _, c := range []struct {
		name              string
		prepare, do, undo func()
	}{
		{"host device reloaded", alias, func() { reload(elsewhere) }, func() { reload(here); must("dmsetup", "remove", "--noudevsync", "alias") }},
		{"image made longer", func() {}, func() { check(os.Truncate(img, 17<<20)) }, func() { check(os.Truncate(img, 16<<20)) }},
	} {
		half, most := figure{Group: b.group, Name: c.name + ": p50", Unit: microseconds}, figure{Group: b.group, Name: c.name + ": p99", Unit: microseconds}
		for pass := range 2 {
			var times []float64
			for range trials {
				mapped := strings.TrimSpace(must("dmloop", "map", "--gate=none", "--pin=none", "--unsafe", img))
				c.prepare()
				times = append(times, untilItFails(mapped, c.do))
				c.undo()
				must("dmloop", "unmap", mapped)
			}
			half.Passes[pass], most.Passes[pass] = median(times), slices.Sorted(slices.Values(times))[trials-2]
		}
		b.report(half)
		b.report(most)
	}
	must("dmloop", "unmap", "other")
	endGuard()
	b.exchange(conn, dev)
}

// exchange measures what the kernel alone takes to put an error table in the place of another.
func (b *bed) exchange(conn *dm.Conn, dev string) {
	linear := dmtable.Table{{Start: 0, Length: 2048, Target: dmtable.Linear, Args: numbers(dev) + " 0"}}
	must("dmsetup", "create", "plain", "--noudevsync", "--table", linear.String())
	b.measure(thing{"an error table in the place of a table: the kernel alone", microseconds, func() float64 {
		start := time.Now()
		_, err := conn.ReplaceNow(dm.ByName("plain"), dmtable.ErrorTable(2048), 0)
		took := micro(time.Since(start))
		check(err)
		_, err = conn.ReplaceNow(dm.ByName("plain"), linear, 0)
		check(err)
		return took
	}})
	must("dmsetup", "remove", "--noudevsync", "plain")
}

// untilItFails reads a device block by block from the end of a change until a read fails.
func untilItFails(dev string, change func()) float64 {
	fd, err := unix.Open(dev, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	check(err)
	defer unix.Close(fd)
	room := make([]byte, 2*block)
	at := block - int(uintptr(unsafe.Pointer(&room[0]))%block)
	change()
	start := time.Now()
	for time.Since(start) < 5*time.Second {
		if _, err := unix.Pread(fd, room[at:at+block], 0); err != nil {
			return micro(time.Since(start))
		}
	}
	check(fmt.Errorf("the guard did nothing"))
	return 0
}

// numbers returns the device's number as tables have it.
func numbers(dev string) string {
	var s unix.Stat_t
	check(unix.Stat(dev, &s))
	return fmt.Sprintf("%d:%d", unix.Major(s.Rdev), unix.Minor(s.Rdev))
}

// idle measures the guard's share of the processor while nothing happens to 100 mappings of
// 1,000 extents.
func (b *bed) idle() {
	dev, remove := disk(1500, nvme)
	defer remove()
	defer host("ext4", dev)()
	var names []string
	for i := range 100 {
		name := fmt.Sprintf("i%d", i)
		fragmented(path(name), 1000, block)
		must("dmloop", "map", "--gate=none", path(name), name)
		names = append(names, name)
	}
	b.idleShare("100 idle mappings of 1,000 extents")
	for _, name := range names {
		must("dmloop", "unmap", name)
	}
	endGuard()
}

// idleShare measures in two passes of a minute each, after a minute to come to rest.
func (b *bed) idleShare(name string) {
	const pause = time.Minute
	pid := guardPID()
	time.Sleep(pause)
	share := figure{Group: b.group, Name: name, Unit: perCent}
	for pass := range 2 {
		before := processorTime(pid)
		time.Sleep(pause)
		share.Passes[pass] = 100 * float64(processorTime(pid)-before) / float64(pause)
	}
	b.report(share)
	b.report(figure{Group: b.group, Name: name + ": the guard's memory", Unit: mebibytes, Passes: [2]float64{resident(pid), resident(pid)}})
}

// processorTime is what a process's threads have run, in the scheduler's own nanoseconds.
func processorTime(pid int) (total time.Duration) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	check(err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		check(err)
		var ran int64
		_, err = fmt.Sscan(string(text), &ran)
		check(err)
		total += time.Duration(ran)
	}
	return total
}

// resident is the memory that a process has, in MiB.
func resident(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	check(err)
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	var kib float64
	_, err = fmt.Sscan(rest, &kib)
	check(err)
	return kib / 1024
}
