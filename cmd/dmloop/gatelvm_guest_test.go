//go:build vmtest

package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/internal/vmtest"
)

// group is a volume group over two disks.
type group struct{ config, a, b string }

func newGroup(t *testing.T) group {
	t.Helper()
	a, b := vmtest.Disk(t, 0), vmtest.Disk(t, 1)
	for _, module := range []string{"dm-snapshot", "dm-bufio", "dm-mirror", "dm-thin-pool", "dm-cache", "dm-cache-smq"} {
		vmtest.Run(t, "modprobe", "-q", module)
	}
	g := group{a: a, b: b, config: fmt.Sprintf(`devices { filter=["a|^%s$|","a|^%s$|","r|.*|"] use_devicesfile=0 } activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 } global { use_lvmpolld=0 }`, a, b)}
	g.must(t, "pvcreate", "-q", a, b)
	g.must(t, "vgcreate", "-q", "vg", a, b)
	t.Cleanup(func() {
		g.must(t, "vgremove", "-q", "--force", "vg")
		g.must(t, "pvremove", "-q", a, b)
	})
	for _, name := range []string{"host", "other"} {
		g.must(t, "lvcreate", "-q", "-Wn", "-Zn", "-n", name, "-L", "320M", "vg", a)
	}
	return g
}

func (g group) run(t *testing.T, args ...string) vmtest.Result {
	t.Helper()
	return vmtest.Run(t, append([]string{"lvm", args[0], "--yes", "--config", g.config}, args[1:]...)...)
}

func (g group) must(t *testing.T, args ...string) {
	t.Helper()
	if r := g.run(t, args...); r.Code != 0 {
		t.Fatalf("lvm %q: exit code %d\n%s%s", args, r.Code, r.Stdout, r.Stderr)
	}
}

// shape is what LVM's metadata and the kernel say of the group.
func (g group) shape(t *testing.T) string {
	t.Helper()
	r := g.run(t, "lvs", "--noheadings", "-a", "-o", "name,segtype,size,devices,attr", "vg")
	return r.Stdout + vmtest.Must(t, "sh", "-c", "dmsetup table | sort")
}

// TestQemuGateLVM has LVM change the volume that an image's host file system is on, and
// another one of the same group, which it may change as it likes.
func TestQemuGateLVM(t *testing.T) {
	withGate(t)
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			g := newGroup(t)
			vmtest.Mkfs(t, fstype, "/dev/mapper/vg-host")
			dir := vmtest.Mount(t, "/dev/mapper/vg-host")
			image := filepath.Join(dir, "image")
			vmtest.RandomFile(t, image, 8<<20, 1)
			dev := dmloopOK(t, "map", "--no-guard", image)
			t.Cleanup(func() { dmloopOK(t, "unmap", "image") })
			content := fill(t, dev, 8<<20, 5)
			var table strings.Builder
			for _, c := range []struct {
				passes bool
				args   []string
			}{
				{false, []string{"lvcreate", "-s", "-n", "snap", "-L", "20M", "vg/%"}},
				{false, []string{"pvmove", "-n", "%", g.a, g.b}},
				{false, []string{"lvreduce", "-f", "-L", "-40M", "vg/%"}},
				{true, []string{"lvextend", "-L", "+40M", "vg/%", g.b}},
				{true, []string{"lvchange", "--refresh", "vg/%"}},
				{false, []string{"lvchange", "-an", "vg/%"}},
				{false, []string{"lvconvert", "--type", "thin", "--thinpool", "vg/pool", "vg/%"}},
				{false, []string{"lvconvert", "--type", "cache", "--cachevol", "vg/cache", "vg/%"}},
			} {
				for _, name := range []string{"host", "other"} {
					args := make([]string, len(c.args))
					for i, arg := range c.args {
						args[i] = strings.ReplaceAll(arg, "%", name)
					}
					before := g.shape(t)
					helper := ""
					switch {
					case strings.Contains(strings.Join(args, " "), "pool"):
						helper = "pool"
						g.must(t, "lvcreate", "-q", "--type", "thin-pool", "-n", "pool", "-L", "32M", "vg")
					case strings.Contains(strings.Join(args, " "), "cache"):
						helper = "cache"
						g.must(t, "lvcreate", "-q", "-Wn", "-Zn", "-n", "cache", "-L", "32M", "vg")
					}
					r := g.run(t, args...)
					fmt.Fprintf(&table, "| %s | %d | %s |\n", strings.Join(args, " "), r.Code, strings.ReplaceAll(strings.TrimSpace(r.Stderr), "\n", "; "))
					if want := c.passes || name == "other"; (r.Code == 0) != want {
						t.Errorf("%q: exit code %d\n%s%s", args, r.Code, r.Stdout, r.Stderr)
					}
					if name == "host" {
						if !c.passes {
							g.standing(t, before)
						}
						g.tidy(t, args)
						if helper != "" {
							g.must(t, "lvremove", "-q", "-f", "vg/"+helper)
						}
						if after := g.shape(t); !c.passes && after != before {
							t.Errorf("%q was refused, and the group is not what it was:\n%s\nwas\n%s", args, after, before)
						}
					} else if r.Code == 0 {
						g.undo(t, args)
					}
					dmloopOK(t, "verify", "image")
				}
			}
			for _, rename := range [][]string{{"lvrename", "vg/host", "guest"}, {"lvextend", "-L", "+8M", "vg/guest"}, {"lvrename", "vg/guest", "host"}, {"vgrename", "vg", "wg"}, {"lvextend", "-L", "+8M", "wg/host"}, {"vgrename", "wg", "vg"}} {
				g.must(t, rename...)
				dmloopOK(t, "verify", "image")
			}
			refusedTo(t, "dmsetup remove --force vg-host", "dmsetup wipe_table vg-host")
			if r := g.run(t, "vgck", "vg"); r.Code != 0 {
				t.Errorf("vgck: %s%s", r.Stdout, r.Stderr)
			}
			vmtest.Must(t, "blockdev", "--flushbufs", dev)
			if got := vmtest.ChecksumFile(t, dev); got != content {
				t.Error("the device does not show what was written")
			}
			t.Log("\n" + table.String())
		})
	}
}

// standing compares the host volume's own rows with what they were.
func (g group) standing(t *testing.T, before string) {
	t.Helper()
	for line := range strings.Lines(g.shape(t)) {
		if strings.HasPrefix(line, "vg-host:") && !strings.Contains(before, line) {
			t.Errorf("the host volume's table has %q, and was\n%s", line, before)
		}
	}
}

// tidy takes back what LVM leaves of a command whose last step the kernel refused, as the
// manual says.
func (g group) tidy(t *testing.T, args []string) {
	t.Helper()
	switch line := strings.Join(args, " "); {
	case strings.Contains(line, "snap"):
		g.must(t, "lvremove", "-q", "-f", "vg/snap")
	case strings.Contains(line, "thin"):
		g.must(t, "lvchange", "-q", "-prw", "vg/host")
	case strings.Contains(line, "cache"):
		vmtest.Must(t, "dmsetup", "remove", "vg-host_corig")
		vmtest.Must(t, "dmsetup", "remove", "vg-cache_cvol-cmeta")
		vmtest.Must(t, "dmsetup", "remove", "vg-cache_cvol")
	}
}

// undo takes back what a command did to the volume called other.
func (g group) undo(t *testing.T, args []string) {
	t.Helper()
	switch line := strings.Join(args, " "); {
	case strings.Contains(line, "snap"):
		g.must(t, "lvremove", "-q", "-f", "vg/snap")
	case args[0] == "pvmove":
		g.must(t, "pvmove", "-n", "other", g.b, g.a)
	case args[0] == "lvchange" && args[1] == "-an":
		g.must(t, "lvchange", "-ay", "vg/other")
	case args[0] == "lvconvert":
		g.must(t, "lvremove", "-q", "-f", "vg/other")
		if strings.Contains(line, "thin") {
			g.must(t, "lvremove", "-q", "-f", "vg/pool")
		}
		g.must(t, "lvcreate", "-q", "-Wn", "-Zn", "-n", "other", "-L", "320M", "vg", g.a)
	}
}
