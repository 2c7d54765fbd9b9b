package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// bed is where the measuring goes on.
type bed struct {
	rounds int
	group  string
	pick   func([]float64) float64 // of a pass: the median, or the smallest
}

// groups are what is measured, in this order.
var groups = []struct {
	name string
	run  func(*bed)
}{
	{"start", (*bed).starts},
	{"pair", (*bed).pairs},
	{"seal", (*bed).sealed},
	{"extents", (*bed).extents},
	{"map", (*bed).maps},
	{"request", (*bed).requests},
	{"table", (*bed).tables},
	{"jobs", (*bed).jobs},
	{"guard", (*bed).latency},
	{"idle", (*bed).idle},
	{"scale", (*bed).scale},
}

func groupNames() []string {
	var names []string
	for _, g := range groups {
		names = append(names, g.name)
	}
	return append(names, checkGroup)
}

// failure is what check panics with: every step here either works or ends the run.
type failure struct{ err error }

// check prints the error at once: what is undone on the way out may fail as well, and hide it.
func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		panic(failure{err})
	}
}

// measure runs the groups and prints their figures.
func measure(o options) (err error) {
	b := &bed{rounds: o.rounds, pick: median}
	defer func() {
		if f, ok := recover().(failure); ok {
			err = fmt.Errorf("group %s: %w", b.group, f.err)
		}
	}()
	must("modprobe", "null_blk", "nr_devices=0")
	must("mount", "-t", "configfs", "configfs", "/sys/kernel/config")
	enterRoot(o.programs)
	if o.only == checkGroup {
		b.group = checkGroup
		b.checks()
		return nil
	}
	for _, g := range groups {
		if o.only == "" || slices.Contains(strings.Split(o.only, ","), g.name) {
			b.group = g.name
			g.run(b)
		}
	}
	return nil
}

// A thing is measured by a function that does it once and says what that took.
type thing struct {
	name, unit string
	once       func() float64
}

// measure does everything once, as a warm-up, and then in two passes, and prints the figures.
func (b *bed) measure(things ...thing) {
	figures := make([]figure, len(things))
	for i, t := range things {
		figures[i] = figure{Group: b.group, Name: t.name, Unit: t.unit}
		t.once()
	}
	for pass := range 2 {
		for i, t := range things {
			var values []float64
			for range b.rounds {
				values = append(values, t.once())
			}
			figures[i].Passes[pass] = b.pick(values)
		}
	}
	for _, f := range figures {
		b.report(f)
	}
}

// report prints a figure for the host, and for whoever waits.
func (b *bed) report(f figure) {
	line, err := json.Marshal(f)
	check(err)
	fmt.Println(string(line))
	fmt.Fprintf(os.Stderr, "  %s: %.5g, %.5g %s\n", f.Name, f.Passes[0], f.Passes[1], f.Unit)
}

// disks counts those that were made.
var disks int

// disk makes a disk in the guest's memory that answers each request after a while, and
// returns its path. Nothing but the guest's own clock is in the way there.
func disk(mib int, latency time.Duration) (dev string, remove func()) {
	disks++
	folder := fmt.Sprintf("/sys/kernel/config/nullb/bench%d", disks)
	check(os.Mkdir(folder, 0o755))
	set := func(name, value string) { check(os.WriteFile(filepath.Join(folder, name), []byte(value), 0)) }
	set("size", fmt.Sprint(mib))
	set("memory_backed", "1")
	set("irqmode", "2") // a timer
	set("completion_nsec", fmt.Sprint(latency.Nanoseconds()))
	set("hw_queue_depth", "256")
	if _, err := os.Stat(filepath.Join(folder, "max_sectors")); err == nil {
		set("max_sectors", "2560") // else requests of 128 KiB are split, and sent by a worker
	}
	before := blockDevices()
	set("power", "1")
	for _, name := range blockDevices() {
		if !slices.Contains(before, name) {
			return "/dev/" + name, func() { check(os.Remove(folder)) }
		}
	}
	check(fmt.Errorf("no disk appeared"))
	return "", nil
}

func blockDevices() []string {
	entries, err := os.ReadDir("/sys/block")
	check(err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

const (
	nvme = 80 * time.Microsecond
	seek = 8 * time.Millisecond
	dir  = "/mnt" // where the host file system is mounted
)

// host makes a file system on a shim over a disk and mounts it; the result takes it away.
func host(fstype, dev string, options ...string) (undo func()) {
	must("dmloop", "shim", dev, "host")
	if fstype == "ext4" {
		options = append(options, "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0")
	}
	must("mkfs."+fstype, append(options, "-q", "/dev/mapper/host")...)
	must("mount", "-t", fstype, "/dev/mapper/host", dir)
	return func() {
		must("umount", dir)
		must("dmsetup", "remove", "--retry", "host")
	}
}
