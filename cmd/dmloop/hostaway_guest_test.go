//go:build vmtest

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/internal/vmtest"
)

// numbered makes a device with a minor number of the caller's choice over a whole disk.
func numbered(t testing.TB, name string, minor int, disk string) string {
	t.Helper()
	major := strings.TrimSpace(vmtest.Must(t, "awk", "$2 == \"device-mapper\" { print $1 }", "/proc/devices"))
	vmtest.Must(t, "dmsetup", "create", name, "--major", major, "--minor", fmt.Sprint(minor),
		"--table", fmt.Sprintf("0 %d linear %s 0", vmtest.Sectors(t, disk), disk))
	t.Cleanup(func() { vmtest.DmsetupRemove(t, name) })
	return "/dev/mapper/" + name
}

// mountAt mounts a device until the test ends or the directory is unmounted.
func mountAt(t testing.TB, dev, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "mount", dev, dir)
	t.Cleanup(func() { vmtest.Run(t, "umount", dir) })
}

// The host goes away and comes back under another number, while another disk has the
// old one: the other disk is not asked about the image, and the release ends on the
// right one.
func TestHostUnderAnotherNumber(t *testing.T) {
	for _, kind := range []hostKind{ext4Host, xfsHost} {
		t.Run(kind.name, func(t *testing.T) {
			disk, other := vmtest.Disk(t, 0), vmtest.Disk(t, 1)
			dir, elsewhere := t.TempDir(), t.TempDir()
			host := numbered(t, "host", 70, disk)
			vmtest.Mkfs(t, kind.fstype, host, kind.mkfs...)
			mountAt(t, host, dir)
			image := filepath.Join(dir, "image.img")
			expect(t, 0, "create", image, "8M")
			inode := vmtest.Must(t, "stat", "-c", "%i", image)
			mapIt(t, image, "vol")
			vmtest.Must(t, "umount", dir)
			vmtest.Must(t, "dmsetup", "remove", "host")
			if r := expect(t, 1, "unmap", "vol"); !strings.Contains(r.Stderr, "is not mounted") || !strings.Contains(r.Stderr, "unmap --forget vol") {
				t.Errorf("with the host away: %s", r.Stderr)
			}
			// Another disk under the old number, with another file under the inode's.
			stranger := numbered(t, "stranger", 70, other)
			vmtest.Mkfs(t, kind.fstype, stranger, kind.mkfs...)
			mountAt(t, stranger, elsewhere)
			file := filepath.Join(elsewhere, "image.img")
			vmtest.RandomFile(t, file, 4096, 1)
			if now := vmtest.Must(t, "stat", "-c", "%i", file); now != inode {
				t.Fatalf("the other file has the inode %s, not %s", now, inode)
			}
			r := expect(t, 1, "unmap", "vol")
			if strings.Contains(r.Stderr, "gone") || !strings.Contains(r.Stderr, "is not mounted") {
				t.Errorf("with another disk under the number: %s", r.Stderr)
			}
			if r := cli("list", "vol"); !strings.Contains(r.Stdout, "releasing") {
				t.Errorf("list: %s%s", r.Stdout, r.Stderr)
			}
			mappable(t, kind, file) // its own image, and not mapped as vol
			if r := cli("unmap", file); r.Code != 6 {
				t.Errorf("unmap of the other file: exit code %d\n%s", r.Code, r.Stderr)
			}
			// The right one, hidden by another mount and then anywhere else.
			host = numbered(t, "host", 71, disk)
			mountAt(t, host, dir)
			if flags := flagsOf(t, image); !strings.Contains(flags, "i") {
				t.Fatalf("the image's flags are %s", flags)
			}
			if r := expect(t, 0, "unmap", "vol"); r.Stderr != "" {
				t.Errorf("with the host back: %s", r.Stderr)
			}
			nothingLeft(t, image)
		})
	}
}

// An image that is deleted is gone only when its own file system says so; then its
// record goes, and nothing is left.
func TestImageGoneUnderAnotherNumber(t *testing.T) {
	disk, dir := vmtest.Disk(t, 0), t.TempDir()
	host := numbered(t, "host", 70, disk)
	vmtest.Mkfs(t, "ext4", host)
	mountAt(t, host, dir)
	image := filepath.Join(dir, "image.img")
	expect(t, 0, "create", image, "8M")
	mapIt(t, image, "vol")
	vmtest.Must(t, "umount", dir)
	vmtest.Must(t, "dmsetup", "remove", "host")
	expect(t, 1, "unmap", "vol")
	host = numbered(t, "host", 71, disk)
	mountAt(t, host, dir)
	vmtest.Must(t, "chattr", "-i", image)
	vmtest.Must(t, "rm", image)
	if r := expect(t, 0, "unmap", "vol"); !strings.Contains(r.Stderr, "gone") {
		t.Errorf("%s", r.Stderr)
	}
	nothingLeft(t)
}

// A record is given up on purpose: not while the device is there, and what stays on the
// image is said, and true.
func TestForget(t *testing.T) {
	disk, dir := vmtest.Disk(t, 0), t.TempDir()
	host := numbered(t, "host", 70, disk)
	vmtest.Mkfs(t, "ext4", host)
	mountAt(t, host, dir)
	image := filepath.Join(dir, "image.img")
	expect(t, 0, "create", image, "8M")
	mapIt(t, image, "vol")
	if r := expect(t, 5, "unmap", "--forget", "vol"); !strings.Contains(r.Stderr, "still there") {
		t.Errorf("%s", r.Stderr)
	}
	expect(t, 2, "unmap", "--forget", "--all")
	expect(t, 2, "unmap", "--forget", "--force", "vol")
	expect(t, 6, "unmap", "--forget", "nothing")
	vmtest.Must(t, "umount", dir)
	vmtest.Must(t, "dmsetup", "remove", "host")
	expect(t, 1, "unmap", "vol")
	r := expect(t, 0, "unmap", "--forget", "vol")
	if !strings.Contains(r.Stdout, image) || !strings.Contains(r.Stdout, "immutable") {
		t.Errorf("%s", r.Stdout)
	}
	nothingLeft(t)
	host = numbered(t, "host", 71, disk)
	mountAt(t, host, dir)
	if flags := flagsOf(t, image); !strings.Contains(flags, "i") {
		t.Errorf("what was said to stay is not there: %s", flags)
	}
	expect(t, 0, "map", "--no-guard", image, "vol")
	expect(t, 0, "unmap", "vol")
	expect(t, 0, "unpin", image)
	nothingLeft(t, image)
	// A record that cannot be read.
	if err := os.WriteFile("/run/dmloop/bad.mapping", []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, 1, "unmap", "bad")
	if r := expect(t, 0, "unmap", "--forget", "bad"); !strings.Contains(r.Stdout, "unpin") {
		t.Errorf("%s", r.Stdout)
	}
	nothingLeft(t)
}
