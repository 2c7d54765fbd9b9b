//go:build vmtest

package vmtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

func TestFileSystemsOnShim(t *testing.T) {
	shim := Shim(t, Disk(t, 0), "shim")
	for _, fs := range []string{"ext4", "xfs", "btrfs", "f2fs"} {
		t.Run(fs, func(t *testing.T) {
			Mkfs(t, fs, shim)
			dir := Mount(t, shim)
			file := filepath.Join(dir, "file")
			RandomFile(t, file, 1<<20, 1)
			if got := Must(t, "findmnt", "-no", "FSTYPE", dir); strings.TrimSpace(got) != fs {
				t.Errorf("mounted as %q", got)
			}
			if CountExtents(t, file) == 0 {
				t.Error("filefrag sees no extents")
			}
			sum := ChecksumFile(t, file)
			Umount(t, dir)
			again := Mount(t, shim)
			if got := ChecksumFile(t, filepath.Join(again, "file")); got != sum {
				t.Errorf("content changed by remounting: %s, was %s", got, sum)
			}
		})
	}
}

func TestStacksMapWhereTheySay(t *testing.T) {
	a, b := Disk(t, 0), Disk(t, 1)
	half := Sectors(t, a) / 2 * 512
	for _, c := range []struct {
		name   string
		make   func() string
		offset int64 // in the stack
		disk   string
		at     int64 // where it lies on disk
	}{
		{"first segment", func() string { return LinearStack(t, "stack", a, b) }, 8192, a, half + 8192},
		{"second segment", func() string { return "/dev/mapper/stack" }, half + 4096, b, 4096},
		{"second stripe", func() string { DmsetupRemove(t, "stack"); return Stripes(t, "stripes", 128, a, b) }, 128 * 512, b, 0},
		{"second row of stripes", func() string { return "/dev/mapper/stripes" }, 2*128*512 + 4096, a, 128*512 + 4096},
	} {
		mark := []byte(fmt.Sprintf("%-512s", c.name))
		writeAt(t, c.make(), mark, c.offset)
		if got := readAt(t, c.disk, len(mark), c.at); !bytes.Equal(got, mark) {
			t.Errorf("%s: %s at %d holds %q", c.name, c.disk, c.at, got[:32])
		}
	}
}

func TestFragmentedFile(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			disk := Disk(t, 0)
			Mkfs(t, fs, disk)
			FragmentedFile(t, Mount(t, disk), "f", 500, 4096)
		})
	}
}

func TestDiskIsWiped(t *testing.T) {
	disks := Disks(t)
	Mkfs(t, "ext4", disks[0])
	if out := Must(t, "blkid", "-p", "-o", "value", "-s", "TYPE", disks[0]); strings.TrimSpace(out) != "ext4" {
		t.Fatalf("no ext4 to wipe: %q", out)
	}
	if r := Run(t, "blkid", "-p", Disk(t, 0)); r.Code != 2 || r.Stdout != "" {
		t.Errorf("blkid after wiping: code %d, %q", r.Code, r.Stdout)
	}
}

func TestHostIsSafe(t *testing.T) {
	if err := os.WriteFile("/host/dmloop-must-not-exist", nil, 0o644); err == nil {
		t.Error("the host's tree can be written")
	}
	if err := os.WriteFile("/etc/dmloop-test", []byte("x"), 0o644); err != nil {
		t.Errorf("the overlay cannot be written: %v", err)
	}
	if _, err := os.Stat("/host/etc/dmloop-test"); err == nil {
		t.Error("a file written in the guest appeared on the host")
	}
}

func TestModulesLoad(t *testing.T) {
	targets := map[string]string{
		"dm-crypt": "crypt", "dm-snapshot": "snapshot", "dm-thin-pool": "thin-pool", "dm-flakey": "flakey",
		"dm-log-writes": "log-writes", "dm-delay": "delay", "dm-zero": "zero", "dm-mirror": "mirror",
		"dm-raid": "raid", "dm-verity": "verity",
	}
	for module := range targets {
		Must(t, "modprobe", module)
	}
	Must(t, "modprobe", "brd", "rd_nr=1", "rd_size=16384")
	have := Must(t, "dmsetup", "targets")
	for _, name := range append([]string{"linear", "striped", "error"}, mapValues(targets)...) {
		if !regexp.MustCompile(`(?m)^` + name + ` `).MatchString(have) {
			t.Errorf("no target %s in\n%s", name, have)
		}
	}
	if Sectors(t, "/dev/ram0") != 16384*2 {
		t.Errorf("ramdisk has %d sectors", Sectors(t, "/dev/ram0"))
	}
	Must(t, "modprobe", "-r", "brd")
}

func TestLeftoversAreSeen(t *testing.T) {
	before := survey()
	disk := Disk(t, 0)
	Mkfs(t, "ext4", disk)
	Must(t, "dmsetup", "create", "left", "--table", "0 8 zero")
	loop := strings.TrimSpace(Must(t, "losetup", "-f", "--show", disk))
	sleeper := exec.Command("sleep", "1000")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	left := strings.Join(leftovers(before, 0), "\n")
	for _, want := range []string{"device-mapper device left", "loop device " + filepath.Base(loop), "sleep 1000"} {
		if !strings.Contains(left, want) {
			t.Errorf("%q not seen in\n%s", want, left)
		}
	}
	if err := sleeper.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	sleeper.Wait()
	Must(t, "losetup", "-d", loop)
	Must(t, "dmsetup", "remove", "left")
	if left := leftovers(before, time.Second); len(left) > 0 {
		t.Errorf("still seen after removal: %q", left)
	}
}

func TestQemuProcessors(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Errorf("%d processor", runtime.NumCPU())
	}
}

func writeAt(t *testing.T, dev string, data []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
}

// readAt reads from the medium: the cache of a disk does not know what was
// written through a device above it.
func readAt(t *testing.T, dev string, n int, off int64) []byte {
	t.Helper()
	Must(t, "blockdev", "--flushbufs", dev)
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, n)
	if _, err := f.ReadAt(buf, off); err != nil {
		t.Fatal(err)
	}
	return buf
}

func mapValues(m map[string]string) []string {
	var values []string
	for _, v := range m {
		values = append(values, v)
	}
	return values
}
