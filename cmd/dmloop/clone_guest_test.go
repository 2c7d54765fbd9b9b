//go:build vmtest

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/internal/vmtest"
)

// clone is a host with one image that is mapped as vol, and a copy of the whole host on
// another disk, whose files are all that the host's are except for the device.
type clone struct {
	host, copied string // devices
	dir, snap    string // mount points
	image, twin  string
}

func newClone(t *testing.T) *clone {
	t.Helper()
	disk, other := vmtest.Disk(t, 0), vmtest.Disk(t, 1)
	c := &clone{dir: t.TempDir(), snap: t.TempDir()}
	c.host = numbered(t, "host", 70, disk)
	vmtest.Mkfs(t, "ext4", c.host)
	mountAt(t, c.host, c.dir)
	c.image, c.twin = filepath.Join(c.dir, "image.img"), filepath.Join(c.snap, "image.img")
	expect(t, 0, "create", c.image, "8M")
	mapIt(t, c.image, "vol")
	vmtest.Must(t, "sync")
	vmtest.Must(t, "fsfreeze", "--freeze", c.dir)
	vmtest.Must(t, "dd", "if="+disk, "of="+other, "bs=1M", "conv=notrunc,fsync", "status=none")
	vmtest.Must(t, "fsfreeze", "--unfreeze", c.dir)
	c.copied = numbered(t, "snap", 80, other)
	if a, b := vmtest.Must(t, "blkid", "-p", "-o", "value", "-s", "UUID", c.host), vmtest.Must(t, "blkid", "-p", "-o", "value", "-s", "UUID", c.copied); a != b {
		t.Fatalf("the copy has the UUID %s, not %s", b, a)
	}
	return c
}

func pinnedFlag(t *testing.T, image string) bool {
	t.Helper()
	return strings.Contains(flagsOf(t, image), "i")
}

// A copy of the host is another file system although everything in it is the same: while
// the host is mounted, a path in the copy names no mapping.
func TestCopyOfTheHost(t *testing.T) {
	c := newClone(t)
	mountAt(t, c.copied, c.snap)
	for _, verb := range []string{"unmap", "verify", "status"} {
		expect(t, 6, verb, c.twin)
	}
	expect(t, 0, "unpin", c.twin)
	if pinnedFlag(t, c.twin) || !pinnedFlag(t, c.image) {
		t.Fatalf("after unpin of the copy: flags %s of it, %s of the image", flagsOf(t, c.twin), flagsOf(t, c.image))
	}
	dev := mapIt(t, c.twin, "twin")
	vmtest.Must(t, "dd", "if=/dev/urandom", "of="+dev, "bs=64k", "count=1", "oflag=direct", "conv=notrunc", "status=none")
	expect(t, 0, "unmap", c.twin)
	expect(t, 6, "unmap", c.twin)
	if r := expect(t, 0, "verify", c.image); !strings.Contains(r.Stdout, "healthy") {
		t.Errorf("verify: %s", r.Stdout)
	}
}

// The image's name is gone on both, and the release goes by the handle.
func TestCopyOfTheHostRenamed(t *testing.T) {
	c := newClone(t)
	// The copy is mounted first, so that the list of mounts begins with it.
	vmtest.Must(t, "umount", c.dir)
	mountAt(t, c.copied, c.snap)
	mountAt(t, c.host, c.dir)
	rename := func(image string) string {
		t.Helper()
		vmtest.Must(t, "chattr", "-i", image)
		vmtest.Must(t, "mv", image, image+".new")
		vmtest.Must(t, "chattr", "+i", image+".new")
		return image + ".new"
	}
	image, twin := rename(c.image), rename(c.twin)
	expect(t, 0, "unmap", "vol")
	if !pinnedFlag(t, twin) {
		t.Errorf("the copy lost its flag: %s", flagsOf(t, twin))
	}
	nothingLeft(t, image)
	vmtest.Must(t, "chattr", "-i", twin)
}

// With the host away and a copy in its place nobody can tell: nothing is released.
func TestCopyInPlaceOfTheHost(t *testing.T) {
	c := newClone(t)
	vmtest.Must(t, "umount", c.dir)
	mountAt(t, c.copied, c.snap)
	for _, args := range [][]string{{"unmap", c.twin}, {"status", c.twin}, {"unpin", c.twin}, {"map", "--no-guard", c.twin, "twin"}} {
		r := cli(args...)
		if r.Code == 0 || !strings.Contains(r.Stderr, "cannot tell") || !strings.Contains(r.Stderr, "unmount") {
			t.Errorf("%q: exit code %d\n%s", args, r.Code, r.Stderr)
		}
	}
	// Not under the path of the record either, whether the disk is there or not.
	vmtest.Must(t, "umount", c.snap)
	mountAt(t, c.copied, c.dir)
	before := flagsOf(t, c.image)
	r := expect(t, 1, "unmap", "vol")
	if strings.Contains(r.Stderr, "gone") || !strings.Contains(r.Stderr, "cannot tell") {
		t.Errorf("unmap: %s", r.Stderr)
	}
	vmtest.Must(t, "dmsetup", "remove", "host")
	expect(t, 1, "unmap", "vol") // its disk still carries the file system
	if now := flagsOf(t, c.image); now != before {
		t.Errorf("the copy's flags were %s and are %s", before, now)
	}
	vmtest.Must(t, "chattr", "-i", c.image)
	vmtest.Must(t, "rm", c.image)
	r = expect(t, 1, "unmap", "vol")
	if strings.Contains(r.Stderr, "gone") || !strings.Contains(r.Stderr, "cannot tell") {
		t.Errorf("with the copy's file deleted: %s", r.Stderr)
	}
	// The host comes back under another number, the copy is still a disk of this machine.
	vmtest.Must(t, "umount", c.dir)
	host := numbered(t, "host", 71, vmtest.Disks(t)[0])
	mountAt(t, host, c.dir)
	if r := expect(t, 1, "unmap", "vol"); !strings.Contains(r.Stderr, "cannot tell") || !pinnedFlag(t, c.image) {
		t.Errorf("with the host back: %s", r.Stderr)
	}
	vmtest.Must(t, "dmsetup", "remove", "snap")
	vmtest.Must(t, "wipefs", "-a", vmtest.Disks(t)[1])
	expect(t, 0, "unmap", "vol")
	nothingLeft(t, c.image)
}

// A second shim by hand shows the same sectors: it is no copy.
func TestSecondShimIsNoCopy(t *testing.T) {
	disk, dir := vmtest.Disk(t, 0), t.TempDir()
	host := numbered(t, "host", 70, disk)
	vmtest.Mkfs(t, "ext4", host)
	mountAt(t, host, dir)
	image := filepath.Join(dir, "image.img")
	expect(t, 0, "create", image, "8M")
	mapIt(t, image, "vol")
	vmtest.Must(t, "umount", dir)
	mountAt(t, numbered(t, "second", 71, disk), dir)
	if _, err := os.Stat(image); err != nil {
		t.Fatal(err)
	}
	if r := expect(t, 5, "unmap", image); !strings.Contains(r.Stderr, "second") || strings.Contains(r.Stderr, "told") {
		t.Errorf("unmap: %s", r.Stderr)
	}
	vmtest.Must(t, "dmsetup", "remove", "host")
	expect(t, 0, "unmap", image)
	nothingLeft(t, image)
}

// A file system of btrfs has another, anonymous number after each mount. It is the image's
// where no other disk carries its UUID.
func TestRemountedBtrfs(t *testing.T) {
	disk, other, dir := vmtest.Disk(t, 0), vmtest.Disk(t, 1), t.TempDir()
	host := numbered(t, "host", 70, disk)
	vmtest.Mkfs(t, "btrfs", host)
	mountAt(t, host, dir)
	image := filepath.Join(dir, "image.img")
	expect(t, 0, "create", image, "8M")
	expect(t, 0, "seal", image)
	mapSealed(t, image, "vol")
	expect(t, 0, "boot", "release", "vol")
	device := vmtest.Must(t, "stat", "-c", "%d", image)
	vmtest.Must(t, "umount", dir)
	taken := t.TempDir() // takes the number that becomes free
	vmtest.Must(t, "mount", "-t", "tmpfs", "none", taken)
	t.Cleanup(func() { vmtest.Run(t, "umount", taken) })
	vmtest.Must(t, "dd", "if="+disk, "of="+other, "bs=1M", "conv=fsync", "status=none")
	mountAt(t, host, dir)
	if now := vmtest.Must(t, "stat", "-c", "%d", image); now == device {
		t.Fatalf("the number is %s as before", now)
	}
	if r := expect(t, 1, "unmap", "vol"); !strings.Contains(r.Stderr, "cannot tell") {
		t.Errorf("beside a copy: %s", r.Stderr)
	}
	vmtest.Must(t, "wipefs", "-qa", other)
	expect(t, 0, "unmap", "vol")
	nothingLeft(t, image)
}
