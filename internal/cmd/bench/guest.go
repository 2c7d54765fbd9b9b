package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

// bed is where the measuring goes on: one disk with ext4 on a shim.
type bed struct {
	program string // dmloop
	rounds  int
	kernel  string
	disks   []string
	dir     string // mount point of the host file system
	group   string
}

// groups are what is measured, in this order.
var groups = []struct {
	name string
	run  func(*bed)
}{
	{"base", (*bed).againstBase},
	{"loop", (*bed).againstLoop},
	{"create", (*bed).againstDD},
	{"small", (*bed).againstLosetup},
	{"map", (*bed).againstScript},
	{"extents", (*bed).againstFilefrag},
	{"seal", (*bed).againstUnsealed},
}

func groupNames() []string {
	var names []string
	for _, g := range groups {
		names = append(names, g.name)
	}
	return names
}

// failure is what check panics with: every step here either works or ends the run.
type failure struct{ err error }

func check(err error) {
	if err != nil {
		panic(failure{err})
	}
}

// measure runs the groups and prints their rows.
func measure(o options) (err error) {
	defer func() {
		if f, ok := recover().(failure); ok {
			err = f.err
		}
	}()
	b := &bed{
		program: o.program, rounds: o.rounds, kernel: os.Getenv("DMLOOP_GUEST"),
		disks: strings.Split(os.Getenv("DMLOOP_DISKS"), ":"), dir: "/mnt",
	}
	if _, err := os.Stat(b.program); err != nil {
		b.program = "/host" + b.program // /tmp is the guest's own
	}
	for _, g := range groups {
		if o.only != "" && !slices.Contains(strings.Split(o.only, ","), g.name) {
			continue
		}
		b.group = g.name
		g.run(b)
	}
	return nil
}

// report prints a row for the host, and for who waits.
func (b *bed) report(r row) {
	r.Group = b.group
	line, err := json.Marshal(r)
	check(err)
	fmt.Println(string(line))
	fmt.Fprintf(os.Stderr, "  %s: %s, goal %s\n", r.What, r, r.goal())
}

// host makes an ext4 on a shim over dev and mounts it; the result takes it away.
func (b *bed) host(dev string) (undo func()) {
	must(b.program, "shim", dev, "host")
	must("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", "/dev/mapper/host")
	must("mount", "/dev/mapper/host", b.dir)
	return func() {
		must("umount", b.dir)
		must("dmsetup", "remove", "--retry", "host")
	}
}

func (b *bed) path(name string) string { return b.dir + "/" + name }
