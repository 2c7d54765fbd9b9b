//go:build vmtest

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dmloop/internal/guardrpc"
	"dmloop/internal/record"
	"dmloop/internal/vmtest"
)

// lvm runs a command of LVM that sees this disk only and does without udev.
func lvm(t testing.TB, disk string, args ...string) vmtest.Result {
	t.Helper()
	config := fmt.Sprintf(`devices { filter=["a|^%s$|","r|.*|"] use_devicesfile=0 } activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 }`, disk)
	return vmtest.Run(t, append([]string{"lvm", args[0], "--yes", "--config", config}, args[1:]...)...)
}

func mustLVM(t testing.TB, disk string, args ...string) {
	t.Helper()
	if r := lvm(t, disk, args...); r.Code != 0 {
		t.Fatalf("lvm %q: exit code %d\n%s%s", args, r.Code, r.Stdout, r.Stderr)
	}
}

// volume makes a logical volume of size on a disk and returns both.
func volume(t testing.TB, size string) (disk, lv string) {
	t.Helper()
	disk = vmtest.Disk(t, 0)
	for _, module := range []string{"dm-snapshot", "dm-bufio"} {
		vmtest.Run(t, "modprobe", "-q", module) // built in, or not there: lvcreate says so
	}
	mustLVM(t, disk, "pvcreate", "-q", disk)
	mustLVM(t, disk, "vgcreate", "-q", "vg", disk)
	t.Cleanup(func() {
		mustLVM(t, disk, "vgremove", "-q", "--force", "vg")
		mustLVM(t, disk, "pvremove", "-q", disk)
	})
	mustLVM(t, disk, "lvcreate", "-q", "-Wn", "-Zn", "-n", "lv", "-L", size, "vg")
	return disk, "/dev/mapper/vg-lv"
}

// checkedAgain has the guard read everything about vol anew.
func checkedAgain(t testing.TB) {
	t.Helper()
	client, err := guardrpc.Dial(t.Context(), record.DefaultDir)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Check(t.Context(), "vol"); err != nil {
		t.Fatal(err)
	}
}

// inside makes a file system in the mapping and mounts it.
func inside(t testing.TB, dev string) (dir string) {
	t.Helper()
	vmtest.Mkfs(t, "ext4", dev)
	return vmtest.Mount(t, dev)
}

// A host volume that grows, in place or by a second piece, moves no block of the
// image: the mapping and the file system in it go on.
func TestHostVolumeGrows(t *testing.T) {
	disk, lv := volume(t, "200M")
	vmtest.Mkfs(t, "ext4", lv)
	img := filepath.Join(vmtest.Mount(t, lv), "image")
	vmtest.RandomFile(t, img, 16<<20, 1)
	dev := strings.TrimSpace(mustDmloop(t, "map", img, "vol"))
	t.Cleanup(func() { mustDmloop(t, "unmap", "vol"); endGuard(t, "TERM") })
	dir := inside(t, dev)
	sum := func(name string, seed uint64) string {
		vmtest.RandomFile(t, filepath.Join(dir, name), 1<<20, seed)
		vmtest.Must(t, "sync", filepath.Join(dir, name))
		return vmtest.ChecksumFile(t, filepath.Join(dir, name))
	}
	want := map[string]string{"before": sum("before", 2)}
	for i, step := range [][]string{
		{"lvextend", "-q", "-L", "+40M", "vg/lv"},                   // one row, longer
		{"lvcreate", "-q", "-Wn", "-Zn", "-n", "gap", "-L4M", "vg"}, // something in the way
		{"lvextend", "-q", "-L", "+40M", "vg/lv"},                   // another row
		{"lvreduce", "-q", "-f", "-L-40M", "vg/lv"},                 // and gone again
		{"lvchange", "-q", "--refresh", "vg/lv"},                    // suspended and resumed as it is
	} {
		was := vmtest.Must(t, "dmsetup", "table", "vg-lv")
		mustLVM(t, disk, step...)
		if now := vmtest.Must(t, "dmsetup", "table", "vg-lv"); (step[len(step)-1] == "vg/lv" && step[0] != "lvchange") == (now == was) {
			t.Fatalf("%q: the host's table is\n%sand was\n%s", step, now, was)
		}
		checkedAgain(t)
		if got := state(t, "STATE"); got != "healthy" {
			t.Fatalf("%q: %s: %s\nguard: %s", step, got, state(t, "REASON"), guardLog())
		}
		mustDmloop(t, "verify", "vol")
		name := fmt.Sprint("file", i)
		want[name] = sum(name, uint64(10+i))
	}
	// The next guard compares with the record, not with what this one has seen.
	endGuard(t, "KILL")
	startGuard(t)
	checkedAgain(t)
	if got := state(t, "STATE"); got != "healthy" {
		t.Fatalf("%s: %s", got, state(t, "REASON"))
	}
	vmtest.Must(t, "umount", dir)
	if r := vmtest.Run(t, "e2fsck", "-fn", dev); r.Code != 0 {
		t.Errorf("e2fsck: %s%s", r.Stdout, r.Stderr)
	}
	vmtest.Must(t, "mount", dev, dir)
	for name, sum := range want {
		if got := vmtest.ChecksumFile(t, filepath.Join(dir, name)); got != sum {
			t.Errorf("%s has changed", name)
		}
	}
}

// A snapshot of the host volume must see what is overwritten after it, so writes that
// go past the volume are stopped, and the reason says what can be done.
func TestHostVolumeGetsSnapshot(t *testing.T) {
	disk, lv := volume(t, "200M")
	vmtest.Mkfs(t, "ext4", lv)
	img := filepath.Join(vmtest.Mount(t, lv), "image")
	vmtest.RandomFile(t, img, 4<<20, 1)
	mustDmloop(t, "map", img, "vol")
	t.Cleanup(func() { mustDmloop(t, "unmap", "vol"); endGuard(t, "TERM") })
	mustLVM(t, disk, "lvcreate", "-q", "-s", "-n", "snap", "-L", "20M", "vg/lv")
	await(t, "the tear-down", 20*time.Second, func() bool { return state(t, "STATE") == "failed" })
	if table := vmtest.Must(t, "dmsetup", "table", "vol"); strings.Contains(table, "linear") {
		t.Errorf("the table is %s", table)
	}
	for _, words := range []string{"snapshot-origin", "a snapshot of it was made", "dmloop shim"} {
		if reason := state(t, "REASON"); !strings.Contains(reason, words) {
			t.Errorf("the reason %q does not say %q", reason, words)
		}
	}
}

// With a shim on the volume the mapping's writes go through the volume, so that a
// snapshot of it keeps what they overwrite.
func TestSnapshotBelowShim(t *testing.T) {
	disk, lv := volume(t, "200M")
	expect(t, 0, "shim", lv, "host")
	t.Cleanup(func() { vmtest.DmsetupRemove(t, "host") })
	vmtest.Mkfs(t, "ext4", "/dev/mapper/host")
	img := filepath.Join(vmtest.Mount(t, "/dev/mapper/host"), "image")
	vmtest.RandomFile(t, img, 4<<20, 1)
	dev := strings.TrimSpace(mustDmloop(t, "map", img, "vol"))
	t.Cleanup(func() { mustDmloop(t, "unmap", "vol"); endGuard(t, "TERM") })
	old := fill(t, dev, 4<<20, 2)
	vmtest.Must(t, "sync")
	mustLVM(t, disk, "lvcreate", "-q", "-s", "-n", "snap", "-L", "20M", "vg/lv")
	if table := vmtest.Must(t, "dmsetup", "table", "vg-lv"); !strings.Contains(table, "snapshot-origin") {
		t.Fatalf("the volume's table is %s", table)
	}
	now := fill(t, dev, 4<<20, 3)
	checkedAgain(t)
	if got := state(t, "STATE"); got != "healthy" {
		t.Fatalf("%s: %s", got, state(t, "REASON"))
	}
	mustDmloop(t, "verify", "vol")
	copied := filepath.Join(vmtest.Mount(t, "/dev/mapper/vg-snap", "-o", "ro"), "image")
	if got := vmtest.ChecksumFile(t, copied); got != old {
		t.Error("the snapshot does not hold what the image held when it was taken")
	}
	if got := vmtest.ChecksumFile(t, dev); got != now {
		t.Error("the device does not hold what was written after the snapshot was taken")
	}
}

// Tables of the host that are changed by hand: rows without blocks of the image may
// change as they like, a row below the image may not.
func TestHostRowsBelowTheImage(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	sectors := int64(hostSize)
	host := vmtest.DmsetupCreate(t, "host", fmt.Sprintf("0 %d linear %s 2048\n", sectors, disk))
	vmtest.Mkfs(t, "ext4", host)
	dir := vmtest.Mount(t, host)
	img := filepath.Join(dir, "image")
	vmtest.RandomFile(t, img, 4<<20, 1)
	pieces := filefrag(t, img)
	first, last := pieces[0].Physical/512, (pieces[0].Physical+pieces[0].Length)/512
	for _, e := range pieces {
		first, last = min(first, e.Physical/512), max(last, (e.Physical+e.Length)/512)
	}
	mustDmloop(t, "map", img, "vol")
	t.Cleanup(func() { mustDmloop(t, "unmap", "vol"); endGuard(t, "TERM") })
	want := vmtest.ChecksumFile(t, "/dev/mapper/vol")
	reload := func(rows string) {
		t.Helper()
		if r := vmtest.RunInput(t, rows, "dmsetup", "reload", "host"); r.Code != 0 {
			t.Fatal(r.Stderr)
		}
		vmtest.Must(t, "dmsetup", "suspend", "--nolockfs", "host")
		vmtest.Must(t, "dmsetup", "resume", "host")
	}
	row := func(from, to, shift int64) string {
		return fmt.Sprintf("%d %d linear %s %d\n", from, to-from, disk, from+2048+shift)
	}
	middle := first + (last-first)/2
	for name, rows := range map[string]string{
		"cut in two below the image": row(0, middle, 0) + row(middle, sectors, 0),
		"cut around the image":       row(0, first, 0) + row(first, last, 0) + row(last, sectors, 0),
		"longer":                     row(0, sectors+8192, 0),
		"an error target after it":   row(0, sectors, 0) + fmt.Sprintf("%d 8 error\n", sectors),
	} {
		reload(rows)
		checkedAgain(t)
		if got := state(t, "STATE"); got != "healthy" {
			t.Fatalf("%s: %s: %s", name, got, state(t, "REASON"))
		}
		mustDmloop(t, "verify", "vol")
		vmtest.Must(t, "blockdev", "--flushbufs", "/dev/mapper/vol")
		if got := vmtest.ChecksumFile(t, "/dev/mapper/vol"); got != want {
			t.Fatalf("%s: other data", name)
		}
	}
	// A last sector of the image that leads elsewhere, while everything before it stays.
	moved := row(0, last-8, 0) + row(last-8, last, 8) + row(last, sectors, 0)
	reload(moved)
	await(t, "the tear-down", 20*time.Second, func() bool { return state(t, "STATE") == "failed" })
	if reason := state(t, "REASON"); !strings.Contains(reason, fmt.Sprintf("its sectors %d-%d", last-8, last-1)) {
		t.Errorf("the reason is %q", reason)
	}
	reload(row(0, sectors, 0))
	if _, err := os.ReadFile("/dev/mapper/vol"); err == nil {
		t.Error("the mapping came back by itself")
	}
}

// brokenBelow checks what is said of vol once its disk answers nothing any more.
func brokenBelow(t *testing.T, words string) {
	t.Helper()
	says := func(r vmtest.Result) bool {
		return r.Code == 4 && strings.Contains(r.Stdout+r.Stderr, words) && !strings.Contains(r.Stdout, "healthy")
	}
	for _, args := range [][]string{{"status", "vol"}, {"verify", "vol"}} {
		if r := dmloop(t, args...); !says(r) {
			t.Errorf("dmloop %q: exit code %d, %s%s", args, r.Code, r.Stdout, r.Stderr)
		}
	}
	if got, reason := state(t, "STATE"), state(t, "REASON"); got != "failed" || !strings.Contains(reason, words) {
		t.Errorf("list: %s, %s", got, reason)
	}
}

// onDiskBelow makes a host on a shim of a disk with an image in it.
func onDiskBelow(t *testing.T, disk string) (img string) {
	t.Helper()
	mustDmloop(t, "shim", disk, "host")
	t.Cleanup(func() { vmtest.DmsetupRemove(t, "host") })
	vmtest.Mkfs(t, "ext4", "/dev/mapper/host")
	dir := vmtest.Mount(t, "/dev/mapper/host")
	img = filepath.Join(dir, "image")
	vmtest.RandomFile(t, img, 4<<20, 1)
	return img
}

// A device below that gives errors only is not called healthy, with and without a guard.
func TestDeviceBelowFails(t *testing.T) {
	for _, guarded := range []bool{false, true} {
		t.Run(fmt.Sprint("guard ", guarded), func(t *testing.T) {
			disk := smallDisk(t, 0)
			table := vmtest.Must(t, "dmsetup", "table", "small0")
			img := onDiskBelow(t, disk)
			args := []string{"map", img, "vol"}
			if !guarded {
				args = append(args, "--no-guard")
			}
			mustDmloop(t, args...)
			reload := func(rows string) {
				t.Helper()
				if r := vmtest.RunInput(t, rows, "dmsetup", "reload", "small0"); r.Code != 0 {
					t.Fatal(r.Stderr)
				}
				vmtest.Must(t, "dmsetup", "suspend", "--nolockfs", "small0")
				vmtest.Must(t, "dmsetup", "resume", "small0")
			}
			t.Cleanup(func() {
				reload(table) // so that the file system can be unmounted
				mustDmloop(t, "unmap", "vol")
				endGuard(t, "TERM")
			})
			vmtest.Must(t, "sync")
			reload(fmt.Sprintf("0 %d error\n", hostSize))
			if vmtest.Run(t, "dd", "if=/dev/mapper/vol", "of=/dev/null", "bs=4096", "count=1", "iflag=direct").Code == 0 {
				t.Fatal("the device can be read: this test shows nothing")
			}
			if guarded {
				checkedAgain(t)
				await(t, "the tear-down", 20*time.Second, func() bool { return !strings.Contains(vmtest.Must(t, "dmsetup", "table", "vol"), "linear") })
				await(t, "the record", 20*time.Second, func() bool { return state(t, "STATE") == "failed" })
			}
			brokenBelow(t, "gives errors only")
			if !guarded { // and nothing was done to it: it is sound again with the device
				reload(table)
				if got := state(t, "STATE"); got != "healthy" {
					t.Errorf("with the device back: %s, %s", got, state(t, "REASON"))
				}
			}
		})
	}
}

// scsiDisk makes a disk of memory that can be pulled out, and returns its name.
func scsiDisk(t *testing.T) string {
	t.Helper()
	vmtest.Must(t, "modprobe", "sd_mod") // which udev would load
	before, _ := filepath.Glob("/sys/block/sd*")
	vmtest.Must(t, "modprobe", "scsi_debug", "dev_size_mb=64", "delay=0", "lbpu=0")
	t.Cleanup(func() {
		await(t, "the module's end", 30*time.Second, func() bool { return vmtest.Run(t, "modprobe", "-r", "scsi_debug").Code == 0 })
	})
	var disk string
	await(t, "the disk", 60*time.Second, func() bool {
		now, _ := filepath.Glob("/sys/block/sd*")
		for _, path := range now {
			if !slices.Contains(before, path) {
				disk = filepath.Base(path)
			}
		}
		return disk != ""
	})
	return disk
}

// A disk that is offline, and one that was pulled out, are named instead of "healthy".
func TestQemuPulledDisk(t *testing.T) {
	for _, guarded := range []bool{false, true} {
		t.Run(fmt.Sprint("guard ", guarded), func(t *testing.T) {
			disk := scsiDisk(t)
			img := onDiskBelow(t, "/dev/"+disk)
			args := []string{"map", img, "vol"}
			if !guarded {
				args = append(args, "--no-guard")
			}
			mustDmloop(t, args...)
			t.Cleanup(func() {
				if r := dmloop(t, "unmap", "vol"); r.Code != 0 { // +i cannot be taken off a disk that is gone
					mustDmloop(t, "unmap", "--forget", "vol")
				}
				endGuard(t, "TERM")
			})
			control := func(file, word string) {
				t.Helper()
				if err := os.WriteFile("/sys/block/"+disk+"/device/"+file, []byte(word+"\n"), 0o200); err != nil {
					t.Fatal(err)
				}
			}
			if !guarded {
				control("state", "offline")
				if got, reason := state(t, "STATE"), state(t, "REASON"); got != "stale" || !strings.Contains(reason, "("+disk+")") || !strings.Contains(reason, "is offline") {
					t.Errorf("offline: %s, %s", got, reason)
				}
				if r := dmloop(t, "verify", "vol"); r.Code != 4 || !strings.Contains(r.Stdout+r.Stderr, "is offline") {
					t.Errorf("verify, offline: exit code %d, %s%s", r.Code, r.Stdout, r.Stderr)
				}
				control("state", "running")
				if got := state(t, "STATE"); got != "healthy" {
					t.Errorf("running again: %s, %s", got, state(t, "REASON"))
				}
			}
			control("delete", "1")
			if guarded {
				await(t, "the tear-down", 30*time.Second, func() bool { return !strings.Contains(vmtest.Must(t, "dmsetup", "table", "vol"), "linear") })
				await(t, "the record", 30*time.Second, func() bool { return state(t, "STATE") == "failed" })
			}
			brokenBelow(t, "("+disk+"), on which the image lies, is gone")
		})
	}
}
