//go:build vmtest

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

// partitioned makes two partitions on a disk and returns their paths.
func partitioned(t *testing.T, i int) (disk, first, second string) {
	t.Helper()
	disk = vmtest.Disk(t, i)
	if r := vmtest.RunInput(t, "label: gpt\nsize=200M\nsize=64M\n", "sfdisk", "-q", disk); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	t.Cleanup(func() { vmtest.Must(t, "sfdisk", "-q", "--delete", disk) })
	vmtest.Must(t, "blockdev", "--rereadpt", disk)
	return disk, disk + "1", disk + "2"
}

// refusedShim runs a command that would make a second way to the same sectors.
func refusedShim(t *testing.T, name string, args ...string) {
	t.Helper()
	before := vmtest.Must(t, "dmsetup", "ls")
	r := dmloop(t, args...)
	if r.Code != 5 || !strings.Contains(r.Stderr, "device "+name+" shows the same sectors") {
		t.Errorf("dmloop %s: exit code %d, %s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	if after := vmtest.Must(t, "dmsetup", "ls"); after != before {
		t.Errorf("dmloop %s: devices %q, before %q", strings.Join(args, " "), after, before)
	}
}

// One device under two shims could be mounted twice at a time: the second shim is
// refused, whoever asks for it and by whatever way it leads to the same sectors.
func TestSecondShimIsRefused(t *testing.T) {
	disk, part, other := partitioned(t, 0)
	mustDmloop(t, "shim", part, "srv")
	t.Cleanup(func() { vmtest.DmsetupRemove(t, "srv") })
	vmtest.Mkfs(t, "ext4", "/dev/mapper/srv")
	dir := vmtest.Mount(t, "/dev/mapper/srv")
	img := filepath.Join(dir, "image")
	vmtest.RandomFile(t, img, 4<<20, 1)
	mustDmloop(t, "map", "--no-guard", img, "vol")
	t.Cleanup(func() { mustDmloop(t, "unmap", "vol") })
	uuid := strings.TrimSpace(vmtest.Must(t, "blkid", "-o", "value", "-s", "UUID", "/dev/mapper/srv"))

	refusedShim(t, "srv", "shim", part, "srv2")
	refusedShim(t, "srv", "shim", disk, "srv2")
	tab := filepath.Join(t.TempDir(), "tab")
	for _, source := range []string{part, "UUID=" + uuid} {
		if err := os.WriteFile(tab, fmt.Appendf(nil, "srv %s - shim\nsrv2 %[1]s - shim\n", source), 0o600); err != nil {
			t.Fatal(err)
		}
		mustDmloop(t, "activate", "--tab", tab, "srv") // is there: nothing to do
		refusedShim(t, "srv", "activate", "--tab", tab, "srv2")
	}
	// The kernel has no second mount to offer either.
	if r := vmtest.Run(t, "mount", part, t.TempDir()); r.Code == 0 {
		t.Errorf("%s could be mounted beside its shim", part)
	}
	// A twin over the same sectors that was made by hand, and a crypt device's way.
	twin := vmtest.DmsetupCreate(t, "twin", fmt.Sprintf("0 8 linear %s 0\n", other))
	refusedShim(t, "twin", "shim", other, "x")
	second := vmtest.DmsetupCreate(t, "second", fmt.Sprintf("0 100 linear %s 4\n", other))
	refusedShim(t, "second", "shim", twin, "x")
	vmtest.DmsetupRemove(t, "second")
	_ = second

	// What stands on nothing of that is not refused: a shim on a shim, on a partition
	// beside, on a mapping.
	mustDmloop(t, "shim", twin, "x")
	vmtest.DmsetupRemove(t, "x")
	mustDmloop(t, "shim", "/dev/mapper/vol", "x")
	vmtest.DmsetupRemove(t, "x")
	vmtest.DmsetupRemove(t, "twin")
	mustDmloop(t, "shim", other, "x")
	vmtest.DmsetupRemove(t, "x")
	if r := dmloop(t, "shim", other, "srv"); r.Code != 5 || !strings.Contains(r.Stderr, "of this name exists") {
		t.Errorf("a name that is taken: exit code %d, %s", r.Code, r.Stderr)
	}
	// A host that went away below its mapping gets its shim again.
	want := vmtest.ChecksumFile(t, "/dev/mapper/vol")
	vmtest.Must(t, "umount", dir)
	vmtest.DmsetupRemove(t, "srv")
	mustDmloop(t, "shim", part, "srv")
	vmtest.Must(t, "mount", "/dev/mapper/srv", dir)
	if got := vmtest.ChecksumFile(t, "/dev/mapper/vol"); got != want {
		t.Error("the mapping shows something else")
	}
}

// sumOf reads a device past the page cache.
func sumOf(t *testing.T, dev string) string {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum, buf := sha256.New(), aligned(t, 1<<20)
	if _, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{f}, buf); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// A mount, even a read-only one, replays the journal of a dirty file system unless
// its device is read-only: a shim over a disk that must not be written is.
func TestReadOnlyIsInherited(t *testing.T) {
	disk, part, _ := partitioned(t, 0)
	vmtest.Mkfs(t, "ext4", part)
	dir := vmtest.Mount(t, part)
	vmtest.RandomFile(t, filepath.Join(dir, "file"), 1<<20, 1)
	vmtest.Must(t, "sync")
	for i := range 50 { // in the journal only
		if err := os.Mkdir(filepath.Join(dir, fmt.Sprint("dir", i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	const shutdown, logFlush = 0x8004587d, 1 // EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_LOGFLUSH
	err = unix.IoctlSetPointerInt(int(f.Fd()), shutdown, logFlush)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "umount", dir)
	if state := vmtest.Must(t, "dumpe2fs", "-h", part); !strings.Contains(state, "needs_recovery") {
		t.Fatalf("the file system has nothing to recover:\n%s", state)
	}
	for name, protect := range map[string]string{"the partition": part, "the disk": disk} {
		vmtest.Must(t, "blockdev", "--setro", protect)
		before := sumOf(t, part)
		r := dmloop(t, "shim", part, "srv")
		if r.Code != 0 || !strings.Contains(r.Stderr, "read-only") {
			t.Errorf("%s: exit code %d, %s", name, r.Code, r.Stderr)
		}
		upper := vmtest.DmsetupCreate(t, "upper", fmt.Sprintf("0 %d linear /dev/mapper/srv 0\n", vmtest.Sectors(t, part)))
		mustDmloop(t, "shim", upper, "top") // of one that does not say so itself
		for _, shim := range []string{"srv", "top"} {
			if ro := strings.TrimSpace(vmtest.Must(t, "blockdev", "--getro", "/dev/mapper/"+shim)); ro != "1" {
				t.Errorf("%s: %s: getro says %s", name, shim, ro)
			}
		}
		vmtest.DmsetupRemove(t, "top")
		vmtest.DmsetupRemove(t, "upper")
		vmtest.Run(t, "mount", "-o", "ro", "/dev/mapper/srv", dir) // which may fail: the journal cannot be replayed
		vmtest.Run(t, "umount", dir)
		vmtest.DmsetupRemove(t, "srv")
		if sumOf(t, part) != before {
			t.Errorf("%s: the write-protected file system was changed", name)
		}
		vmtest.Must(t, "blockdev", "--setrw", protect)
	}
	// The test can fail: on a writable one the same mount writes.
	before := sumOf(t, part)
	mustDmloop(t, "shim", part, "srv")
	vmtest.Must(t, "mount", "-o", "ro", "/dev/mapper/srv", dir)
	vmtest.Must(t, "umount", dir)
	vmtest.DmsetupRemove(t, "srv")
	if sumOf(t, part) == before {
		t.Error("the mount of a dirty file system did not write: this test shows nothing")
	}
}

// A mapping of an image on a disk that must not be written is read-only, and one
// that becomes so later says it.
func TestMappingOnReadOnlyDisk(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	mustDmloop(t, "shim", disk, "host")
	t.Cleanup(func() { vmtest.DmsetupRemove(t, "host") })
	vmtest.Mkfs(t, "ext4", "/dev/mapper/host")
	img := filepath.Join(vmtest.Mount(t, "/dev/mapper/host"), "image")
	vmtest.RandomFile(t, img, 4<<20, 1)
	listed := func(column string) string {
		t.Helper()
		return strings.TrimSpace(mustDmloop(t, "list", "--noheadings", "-o", column, "vol"))
	}
	mustDmloop(t, "map", "--no-guard", img, "vol")
	if got := listed("RO"); got != "0" {
		t.Errorf("RO of a writable one: %s", got)
	}
	vmtest.Must(t, "blockdev", "--setro", disk)
	if got := listed("RO"); got != "1" {
		t.Errorf("RO after the disk became read-only: %s", got)
	}
	if reason := listed("REASON"); !strings.Contains(reason, "read-only") || !strings.Contains(reason, filepath.Base(disk)) {
		t.Errorf("the reason: %s", reason)
	}
	if got := listed("STATE"); got != "healthy" {
		t.Errorf("the state: %s", got)
	}
	mustDmloop(t, "unmap", "vol")
	r := dmloop(t, "map", "--no-guard", img, "vol")
	if r.Code != 0 || !strings.Contains(r.Stderr, "read-only") {
		t.Errorf("exit code %d, %s", r.Code, r.Stderr)
	}
	if ro := strings.TrimSpace(vmtest.Must(t, "blockdev", "--getro", "/dev/mapper/vol")); ro != "1" || listed("RO") != "1" {
		t.Errorf("getro says %s, RO %s", ro, listed("RO"))
	}
	mustDmloop(t, "unmap", "vol")
	vmtest.Must(t, "blockdev", "--setrw", disk)
}

// A shim is made by the UUID of its file system, is not taken down below a mount, and
// leaves the partition to be mounted as before.
func TestShimRemoved(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "ext4", disk)
	vmtest.Must(t, "e2label", disk, "my disk")
	uuid := strings.TrimSpace(vmtest.Must(t, "blkid", "-o", "value", "-s", "UUID", disk))
	expect(t, 0, "shim", "UUID="+uuid, "srv")
	for _, again := range []string{disk, "LABEL=my disk", "UUID=" + uuid} { // it is there already, and will do
		if r := expect(t, 0, "shim", again, "srv"); r.Stdout != "/dev/mapper/srv\n" || !strings.Contains(r.Stderr, "ext4  defaults") {
			t.Errorf("%s: %s%s", again, r.Stdout, r.Stderr)
		}
	}
	expect(t, 5, "shim", disk, "other") // which would show the same sectors
	if r := expect(t, 0, "list"); r.Stdout != "" || r.Stderr != "1 shim: dmloop list --shims\n" {
		t.Errorf("%q, %q", r.Stdout, r.Stderr)
	}
	if r := expect(t, 0, "list", "--shims", "--raw", "-n", "-o", "NAME,BELOW,USERS"); r.Stdout != "srv "+disk+" -\n" {
		t.Errorf("%q", r.Stdout)
	}
	dir := t.TempDir()
	vmtest.Must(t, "mount", "/dev/mapper/srv", dir)
	if r := expect(t, 0, "status", "srv"); !strings.Contains(r.Stdout, "BELOW    "+disk+"\n") || !strings.Contains(r.Stdout, "USERS    mount "+dir) {
		t.Errorf("%s", r.Stdout)
	}
	if r := expect(t, 0, "status", "--raw", "-n", "-o", "NAME,BELOW", "srv"); r.Stdout != "srv "+disk+"\n" {
		t.Errorf("status -o: %q", r.Stdout)
	}
	if r := expect(t, 0, "status", "--json", "/dev/mapper/srv"); !strings.Contains(r.Stdout, `"mappings": []`) || !strings.Contains(r.Stdout, `"below": "`+disk) {
		t.Errorf("%s", r.Stdout)
	}
	expect(t, 6, "list", "--shims", "other")
	if r := expect(t, 5, "shim", "--remove", "srv"); !strings.Contains(r.Stderr, dir) || !strings.Contains(r.Stderr, "unmount") {
		t.Errorf("%s", r.Stderr)
	}
	vmtest.Must(t, "umount", dir)
	if r := expect(t, 6, "unmap", "srv"); !strings.Contains(r.Stderr, "dmloop shim --remove srv") {
		t.Errorf("%s", r.Stderr)
	}
	if r := expect(t, 0, "shim", "--remove", "srv"); !strings.Contains(r.Stderr, "mounted from "+disk+" again") {
		t.Errorf("%s", r.Stderr)
	}
	expect(t, 6, "shim", "--remove", "srv")
	vmtest.DmsetupCreate(t, "other", hostTable(disk))
	expect(t, 2, "shim", "--remove", "other")
	vmtest.DmsetupRemove(t, "other")
	vmtest.Must(t, "mount", disk, dir)
	vmtest.Must(t, "umount", dir)
}
