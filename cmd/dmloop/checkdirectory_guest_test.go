//go:build vmtest

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dmloop/internal/lifecycle"
	"dmloop/internal/vmtest"
)

// checkedDirectory is the answer of check about one directory.
func checkedDirectory(t *testing.T, code int, dir string) directoryJSON {
	t.Helper()
	r := expect(t, code, "check", "--json", dir)
	var answer checkJSON
	if err := json.Unmarshal([]byte(r.Stdout), &answer); err != nil || len(answer.Images) != 0 || len(answer.Directories) != 1 {
		t.Fatalf("%v\n%s", err, r.Stdout)
	}
	d := answer.Directories[0]
	if d.Directory != dir || d.Mappable != (code == 0) || d.Mappable != (len(d.Problems) == 0) {
		t.Errorf("%s", r.Stdout)
	}
	return d
}

// folderCase is a folder and what can be said of it in advance.
type folderCase struct {
	name   string
	kind   hostKind
	mount  []string
	script string // makes the folder d; the mount point is the folder without one
	rule   string // that every image there breaks; none where images can be mapped
	note   string // in the words of a note
	remedy string // a script after which nothing is in the way
}

var folderCases = []folderCase{
	{name: "ext4", kind: ext4Host},
	{name: "ext4, chattr +j", kind: ext4Host, script: "mkdir d; chattr +j d", rule: "data-journal", remedy: "chattr -j d; rm d/*"},
	{name: "ext4, data=journal", kind: ext4Host, mount: []string{"-o", "data=journal"}, rule: "data-journal"},
	{name: "ext4 without extents", kind: hostKind{"", "ext4", []string{"-b", "4096", "-O", "^extent,^64bit"}}, rule: "indirect"},
	{name: "ext4, a project's quota", kind: hostKind{"", "ext4", []string{"-b", "4096", "-I", "256", "-O", "project,quota"}}, mount: []string{"-o", "prjquota"},
		script: "mkdir d; chattr -p 7 +P d", note: "quota of the folder's project"},
	{name: "ext4, chattr +c", kind: ext4Host, script: "mkdir d; chattr +c d", note: "may be compressed"},
	{name: "xfs without reflink", kind: hostKind{"xfs-noreflink", "xfs", []string{"-m", "reflink=0"}}},
	{name: "f2fs", kind: f2fsHost},
	{name: "f2fs, mode=lfs", kind: f2fsHost, mount: []string{"-o", "mode=lfs"}, rule: "unpinnable"},
	{name: "btrfs", kind: btrfsHost, note: "only sealed images"},
	{name: "btrfs with two copies", kind: hostKind{"", "btrfs", []string{"-d", "dup"}}, rule: "btrfs-profile"},
}

// What is said of a folder in advance is what is said of an image that is made there.
func TestCheckFolderInAdvance(t *testing.T) {
	for _, c := range folderCases {
		t.Run(c.name, func(t *testing.T) { c.run(t) })
	}
	t.Run("xfs, files on the real-time device", func(t *testing.T) {
		a, b := smallDisk(t, 0), smallDisk(t, 1)
		dev := vmtest.Shim(t, a, hostName)
		vmtest.Mkfs(t, "xfs", dev, "-m", "reflink=0,rmapbt=0", "-r", "rtdev="+b)
		h := &host{kind: xfsHost, dev: dev, dir: vmtest.Mount(t, dev, "-o", "rtdev="+b)}
		checkedDirectory(t, 0, h.dir)
		shell(t, h.dir, "mkdir d; xfs_io -c 'chattr +t' d")
		folderCase{rule: "realtime", remedy: "xfs_io -c 'chattr -t' d; rm d/*"}.judge(t, h, h.path("d"))
	})
}

// The same where the kernel has to have names without case, and encryption.
func TestQemuCheckFolderInAdvance(t *testing.T) {
	for _, c := range []folderCase{
		{name: "ext4, encrypted", kind: hostKind{"", "ext4", []string{"-b", "4096", "-O", "encrypt"}}, rule: "encrypted",
			script: `mkdir d; xfs_io -c "set_encpolicy -v 2 $(head -c 64 /dev/zero | xfs_io -c add_enckey . | sed 's/.* //')" d`},
		{name: "ext4, names without case", kind: hostKind{"", "ext4", []string{"-b", "4096", "-O", "casefold"}}, script: "mkdir d; chattr +F d", note: "upper and lower case"},
		{name: "f2fs, encrypted", kind: hostKind{"", "f2fs", []string{"-O", "encrypt"}}, rule: "encrypted",
			script: `mkdir d; xfs_io -c "set_encpolicy -v 2 $(head -c 64 /dev/zero | xfs_io -c add_enckey . | sed 's/.* //')" d`},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t) })
	}
}

func (c folderCase) run(t *testing.T) {
	h := newHost(t, c.kind, "shim", c.mount...)
	dir := h.dir
	if c.script != "" {
		shell(t, h.dir, c.script)
		dir = h.path("d")
	}
	c.judge(t, h, dir)
}

func (c folderCase) judge(t *testing.T, h *host, dir string) {
	t.Helper()
	code := map[bool]int{true: 3}[c.rule != ""]
	d := checkedDirectory(t, code, dir)
	if c.rule != "" && (len(d.Problems) != 1 || string(d.Problems[0].Rule) != c.rule || d.Problems[0].Hint == "") {
		t.Errorf("%+v, want %s", d.Problems, c.rule)
	}
	if c.note != "" && !slices.ContainsFunc(d.Notes, func(n noteJSON) bool { return strings.Contains(n.Message, c.note) }) {
		t.Errorf("no note of %q: %+v", c.note, d.Notes)
	}
	if d.MountPoint != h.dir || d.Device != "/dev/mapper/host" || d.UUID == "" || !strings.Contains(vmtest.Must(t, "blkid", "-p", h.dev), d.UUID) {
		t.Errorf("mount point %s, device %s, UUID %q", d.MountPoint, d.Device, d.UUID)
	}
	image := filepath.Join(dir, "image")
	if c.rule != "" {
		shell(t, dir, "head -c 1M /dev/urandom >image; sync image")
		if r := expect(t, 3, "check", image); !strings.Contains(r.Stdout, "("+c.rule+")") {
			t.Errorf("of an image it says %s", r.Stdout)
		}
		if c.remedy != "" {
			shell(t, h.dir, c.remedy)
			checkedDirectory(t, 0, dir)
			expect(t, 0, "create", image, "1M")
			expect(t, 0, "check", image)
		}
		return
	}
	expect(t, 0, "create", image, "4M")
	if d.SealedOnly {
		expect(t, 0, "seal", image)
	}
	expect(t, 0, "check", image)
	mapIt(t, image, "image")
	if got := strings.TrimSpace(expect(t, 0, "list", "--raw", "-n", "-o", "GRADE").Stdout); got != string(d.Grade) {
		t.Errorf("grade %s, and %s was said", got, d.Grade)
	}
	expect(t, 0, "unmap", "image")
}

// Nothing is written for the answer, not even a file without a name.
func TestCheckFolderWritesNothing(t *testing.T) {
	for _, kind := range []hostKind{ext4Host, xfsHost, f2fsHost, btrfsHost} {
		t.Run(kind.name, func(t *testing.T) {
			if kind.fstype == "ext4" { // nor by a thread that is still making the file system
				kind.mkfs = append(slices.Clone(kind.mkfs), "-E", "lazy_itable_init=0,lazy_journal_init=0")
			}
			h := newHost(t, kind, "shim")
			writes := func() string {
				vmtest.Must(t, "sync", "-f", h.dir)
				f := strings.Fields(vmtest.Must(t, "cat", "/sys/class/block/"+kernelName(t, h.dev)+"/stat"))
				return f[6] // sectors: a flush alone counts as a write
			}
			var before, after string
			for range 3 { // what the file system does by itself passes
				before = writes()
				expect(t, 0, "check", h.dir)
				if after = writes(); after == before {
					break
				}
			}
			if after != before {
				t.Errorf("%s sectors were written before, and now it is %s", before, after)
			}
			before = after
			shell(t, h.dir, "touch f; sync f") // that the counter counts
			if writes() == before {
				t.Error("the counter of writes stands still")
			}
		})
	}
}

// kernelName is the kernel's name of a device.
func kernelName(t testing.TB, dev string) string {
	t.Helper()
	return strings.TrimSpace(vmtest.Must(t, "lsblk", "-dno", "KNAME", dev))
}

// While a device of the machine is suspended nobody waits for it: neither who asks about a
// directory on it, nor who asks about another one.
func TestCheckFolderBesideASuspendedDevice(t *testing.T) {
	for _, kind := range []hostKind{ext4Host, f2fsHost} {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			disk := vmtest.Disk(t, 1)
			vmtest.Mkfs(t, "ext4", disk)
			direct := vmtest.Mount(t, disk)
			vmtest.Must(t, "sync")
			vmtest.Must(t, "dmsetup", "suspend", "--nolockfs", "host")
			resume := func() { vmtest.Must(t, "dmsetup", "resume", "host") }
			end := time.AfterFunc(20*time.Second, resume) // or the test would never end
			h2 := checkedDirectory(t, 3, h.dir)
			d := checkedDirectory(t, 3, direct)
			if !end.Stop() {
				t.Error("check waited for the resume")
			} else {
				resume()
			}
			if len(h2.Problems) != 1 || h2.Problems[0].Rule != "unresolvable-stack" || !strings.Contains(h2.Problems[0].Message, "suspended") {
				t.Errorf("%+v", h2.Problems)
			}
			if len(d.Problems) != 1 || d.Problems[0].Rule != "mounted-directly" {
				t.Errorf("%+v", d.Problems)
			}
		})
	}
}

// The commands of the way through a shim, as they are printed, lead to a file system that is
// mounted as before, and on which images can be mapped.
func TestWayThroughAShim(t *testing.T) {
	asProgram(t)
	for _, c := range []struct {
		kind    hostKind
		options string
		bind    bool
		subvol  bool
	}{{ext4Host, "noatime,noexec", true, false}, {xfsHost1K, "", false, false}, {btrfsHost, "", false, true}} {
		t.Run(c.kind.name, func(t *testing.T) {
			disk := vmtest.Disk(t, 0)
			vmtest.Mkfs(t, c.kind.fstype, disk, c.kind.mkfs...)
			var dir string
			t.Cleanup(func() { vmtest.DmsetupRemove(t, persistName(dir)) })
			if c.options != "" {
				dir = vmtest.Mount(t, disk, "-o", c.options)
			} else {
				dir = vmtest.Mount(t, disk)
			}
			shell(t, dir, "mkdir 'a b'; echo here >'a b/file'")
			if c.bind {
				point := t.TempDir()
				vmtest.Must(t, "mount", "--bind", filepath.Join(dir, "a b"), point)
				t.Cleanup(func() { vmtest.Must(t, "umount", point) })
			}
			if c.subvol {
				vmtest.Must(t, "btrfs", "-q", "subvolume", "create", filepath.Join(dir, "sub"))
				point := vmtest.Mount(t, disk, "-o", "subvol=sub")
				shell(t, point, "echo there >file")
			}
			mounts := func() string {
				return vmtest.Must(t, "sh", "-c", "findmnt -rno TARGET,FSROOT,VFS-OPTIONS | grep -E '/run/mnt-|/tmp/' | sort")
			}
			before := mounts()
			d := checkedDirectory(t, 3, filepath.Join(dir, "a b"))
			if len(d.Ways) < 2 || d.Ways[0].Way != lifecycle.WayShim || d.Ways[len(d.Ways)-1].Way != lifecycle.WayLoop || d.Device != disk {
				t.Fatalf("%+v", d)
			}
			vmtest.Must(t, "sh", "-ec", strings.Join(d.Ways[0].Commands, "\n"))
			if after := mounts(); after != before {
				t.Errorf("mounted was\n%s\nand is\n%s", before, after)
			}
			d = checkedDirectory(t, 0, dir)
			image := filepath.Join(dir, "image")
			expect(t, 0, "create", image, "4M")
			if d.SealedOnly {
				expect(t, 0, "seal", image)
			}
			dev := mapIt(t, image, "image")
			wrote := fill(t, dev, 4<<20, 1)
			if got := vmtest.ChecksumFile(t, dev); got != wrote {
				t.Error("the device does not show what was written")
			}
			expect(t, 0, "unmap", "image")
		})
	}
}

// The other ways: at every boot where fstab mounts it, another file system of the machine, a
// volume group, the loop driver.
func TestWaysOfThisMachine(t *testing.T) {
	asProgram(t)
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "ext4", disk)
	dir := vmtest.Mount(t, disk)
	ways := func() map[lifecycle.WayKind]wayJSON {
		found := map[lifecycle.WayKind]wayJSON{}
		for _, w := range checkedDirectory(t, 3, dir).Ways {
			found[w.Way] = w
		}
		return found
	}
	if w := ways()[lifecycle.WayPersist]; len(w.Commands) != 0 || !strings.Contains(w.What, "no line of /etc/fstab mounts "+dir) {
		t.Errorf("without a line in fstab: %+v", w)
	}
	old, err := os.ReadFile("/etc/fstab")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	uuid := strings.TrimSpace(vmtest.Must(t, "blkid", "-p", "-s", "UUID", "-o", "value", disk))
	if err := os.WriteFile("/etc/fstab", fmt.Appendf(old, "\nUUID=%s %s ext4 noatime,nofail 0 2\n", uuid, dir), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile("/etc/fstab", old, 0o644) })
	vmtest.DmsetupCreate(t, "lent", fmt.Sprintf("0 %d linear %s 0\n", hostSize, vmtest.Disk(t, 1)))
	vmtest.Mkfs(t, "ext4", "/dev/mapper/lent")
	other := vmtest.Mount(t, "/dev/mapper/lent")
	vmtest.Must(t, "dmsetup", "create", "my--group-root", "-u", "LVM-"+strings.Repeat("a", 64), "--table", "0 8 zero")
	t.Cleanup(func() { vmtest.DmsetupRemove(t, "my--group-root") })

	now := ways()
	for kind, want := range map[lifecycle.WayKind]string{
		lifecycle.WayShim:      "mount -t ext4 -o noatime /dev/mapper/",
		lifecycle.WayPersist:   "dmloop shim --persist " + dir,
		lifecycle.WayElsewhere: "dmloop create " + other + "/IMAGE SIZE",
		lifecycle.WayVolume:    "lvcreate --name images --size SIZE my-group",
		lifecycle.WayLoop:      "losetup --direct-io=on --find --show " + dir + "/IMAGE",
	} {
		if !strings.Contains(strings.Join(now[kind].Commands, "\n"), want) {
			t.Errorf("%s: %+v, want %s", kind, now[kind], want)
		}
	}
	text := expect(t, 3, "check", dir).Stdout
	for _, w := range now {
		for _, c := range append(w.Commands, w.What) {
			if !strings.Contains(text, c) {
				t.Errorf("%q is not in what people read:\n%s", c, text)
			}
		}
	}
	if out := vmtest.Must(t, "sh", "-c", now[lifecycle.WayPersist].Commands[0]+" --dry-run"); !strings.Contains(out, "/etc/fstab") {
		t.Errorf("it would edit %s", out)
	}
	image := filepath.Join(dir, "IMAGE")
	expect(t, 0, "create", image, "1M")
	loop := strings.TrimSpace(vmtest.Must(t, "sh", "-c", now[lifecycle.WayLoop].Commands[0]))
	vmtest.Must(t, "losetup", "-d", loop)
	// Images and directories in one command, each in its list.
	r := expect(t, 3, "check", "--json", other, image, dir)
	var answer checkJSON
	if err := json.Unmarshal([]byte(r.Stdout), &answer); err != nil || len(answer.Images) != 1 || len(answer.Directories) != 2 {
		t.Errorf("%v\n%s", err, r.Stdout)
	}
}

// persistName is the name that a shim for a mount point gets.
func persistName(point string) string {
	return "shim-" + strings.ReplaceAll(strings.Trim(point, "/"), "/", "-")
}

// asProgram makes the command under test one that shells find as dmloop.
func asProgram(t *testing.T) {
	t.Helper()
	vmtest.RequireGuest(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	text := fmt.Sprintf("#!/bin/sh\n%s=dmloop exec %s \"$@\"\n", roleVariable, self)
	if err := os.WriteFile(filepath.Join(bin, "dmloop"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
}
