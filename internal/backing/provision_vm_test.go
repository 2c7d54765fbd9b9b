//go:build vmtest

package backing

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/inode"
	"dmloop/internal/vmtest"

	"golang.org/x/sys/unix"
)

func isENOSPC(err error) bool {
	var p *NoSpaceError
	return errors.As(err, &p) && errors.Is(err, unix.ENOSPC)
}

// sick makes a file f with all that the host's files can have, and returns its path
// and its checksum.
func sick(t *testing.T, h host, dir string) (path, sum string) {
	t.Helper()
	const size, step = 8 << 20, 64 << 10
	path, clone := filepath.Join(dir, "f"), filepath.Join(dir, "clone")
	for _, old := range []string{path, clone} {
		if err := os.Remove(old); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	vmtest.RandomFile(t, path, size, 1)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	allocate := func(mode uint32, offset, length int64) {
		if err := unix.Fallocate(int(f.Fd()), mode, offset, length); err != nil {
			t.Fatal(err)
		}
	}
	for at := int64(0); at < size; at += step {
		allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at+step/2, step/4)
	}
	allocate(unix.FALLOC_FL_ZERO_RANGE, size/2, size/8)
	allocate(0, size, 1<<20)
	if err := f.Truncate(size + 2<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if h.reflinks() {
		vmtest.Must(t, "cp", "--reflink=always", path, clone)
	}
	vmtest.Must(t, "sync", "-f", dir)
	return path, vmtest.ChecksumFile(t, path)
}

func TestProvisionOnHosts(t *testing.T) {
	for _, h := range hosts {
		t.Run(h.name, func(t *testing.T) {
			disk, dir := h.mount(t)
			path, before := sick(t, h, dir)
			neighbour := filepath.Join(dir, "neighbour")
			vmtest.RandomFile(t, neighbour, 1<<20, 2)
			other := vmtest.ChecksumFile(t, neighbour)
			report, err := provisionAt(context.Background(), path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if report.Holes < 2<<20 || h.reflinks() && report.Shared < 4<<20 {
				t.Errorf("report is %+v", report)
			}
			if got := flags(t, path); got != "" {
				t.Errorf("filefrag prints %q", got)
			}
			if h.fs != "btrfs" {
				onDisk(t, path, disk)
			}
			if h.reflinks() && vmtest.ChecksumFile(t, filepath.Join(dir, "clone")) != before {
				t.Error("the clone's content changed")
			}
			vmtest.Umount(t, dir)
			vmtest.Must(t, "mount", disk, dir)
			if vmtest.ChecksumFile(t, path) != before {
				t.Error("the content changed")
			}
			if vmtest.ChecksumFile(t, neighbour) != other {
				t.Error("the neighbour's content changed")
			}
		})
	}
}

// A pinned file on f2fs gets new blocks with anything in them, so its holes must not
// be filled. Newer kernels do not pin a file that has blocks: then there is no such file.
func TestProvisionPinned(t *testing.T) {
	_, dir := host{"", "f2fs", nil}.mount(t)
	soil(t, dir, 256)
	shell(t, dir, "head -c 1M /dev/urandom >f; truncate -s 16M f; sync f")
	path := filepath.Join(dir, "f")
	before := vmtest.ChecksumFile(t, path)
	pinned := setPin(t, path, true) == nil
	_, err := provisionAt(context.Background(), path, Options{})
	if pinned && !hasProblem(err, extents.Hole) || !pinned && err != nil {
		t.Errorf("pinned %v: %v", pinned, err)
	}
	if vmtest.ChecksumFile(t, path) != before {
		t.Error("the content changed")
	}
	if !pinned {
		return
	}
	if err := setPin(t, path, false); err != nil {
		t.Fatal(err)
	}
	if _, err := provisionAt(context.Background(), path, Options{}); err != nil {
		t.Errorf("unpinned: %v", err)
	}
	if vmtest.ChecksumFile(t, path) != before {
		t.Error("the content changed after unpinning")
	}
}

// setPin pins or unpins a file on f2fs; f2fs_io can do the latter only since 1.16.
func setPin(t *testing.T, path string, pin bool) error {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return inode.SetF2FSPin(f, pin)
}

func TestProvisionCompressed(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "btrfs", disk)
	dir := vmtest.Mount(t, disk)
	shell(t, dir, ">f; chattr +c f; yes something | head -c 8M >f; sync")
	path := filepath.Join(dir, "f")
	if got := flags(t, path); !strings.Contains(got, "encoded") {
		t.Fatalf("premise: not compressed: %q", got)
	}
	before := vmtest.ChecksumFile(t, path)
	report, err := provisionAt(context.Background(), path, Options{})
	if err != nil || report.Encoded != 8<<20 {
		t.Errorf("got %+v, %v", report, err)
	}
	if got := flags(t, path); got != "" {
		t.Errorf("filefrag prints %q", got)
	}
	if vmtest.ChecksumFile(t, path) != before {
		t.Error("the content changed")
	}
}

// TestKilledProvisionHarmsNothing kills it at many points, with and without a power
// cut, and compares the content each time.
func TestKilledProvisionHarmsNothing(t *testing.T) {
	for _, h := range []host{hosts[0], hosts[1], hosts[2], hosts[4], hosts[5]} {
		t.Run(h.name, func(t *testing.T) {
			disk, dir := h.mount(t)
			killed := 0
			for at := 1; at <= 91; at += 3 {
				path, before := sick(t, h, dir)
				if !die(t, "provision", path, 0, at) {
					t.Fatalf("not killed at report %d", at)
				}
				killed++
				if at%6 == 1 && h.fs != "btrfs" { // which has no such ioctl
					pullThePlug(t, dir)
					vmtest.Umount(t, dir)
					vmtest.Must(t, "mount", disk, dir)
				}
				if vmtest.ChecksumFile(t, path) != before {
					t.Fatalf("killed at report %d: the content changed", at)
				}
				if at%15 == 1 {
					if _, err := provisionAt(context.Background(), path, Options{}); err != nil {
						t.Errorf("going on after report %d: %v", at, err)
					}
					if vmtest.ChecksumFile(t, path) != before {
						t.Fatalf("going on after report %d: the content changed", at)
					}
				}
			}
			if killed < 30 {
				t.Errorf("killed only %d times", killed)
			}
		})
	}
}

func TestProvisionWithoutSpace(t *testing.T) {
	for _, h := range hosts {
		t.Run(h.name, func(t *testing.T) {
			_, dir := h.mount(t)
			path := filepath.Join(dir, "f")
			shell(t, dir, "head -c 8M /dev/urandom >f; truncate -s 512M f; sync f")
			before := vmtest.ChecksumFile(t, path)
			if _, err := provisionAt(context.Background(), path, Options{}); !isENOSPC(err) {
				t.Errorf("got %v", err)
			}
			if vmtest.ChecksumFile(t, path) != before {
				t.Error("the content changed")
			}
		})
	}
}

// TestProvisionRefusesOnHosts has files that must not be touched.
func TestProvisionRefusesOnHosts(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "ext4", disk)
	dir := vmtest.Mount(t, disk)
	tests := []struct {
		name, script, undo string
		refused            func(err error) bool
	}{
		{"immutable", "truncate -s 1M f; chattr +i f", "chattr -i f", func(err error) bool { return errors.Is(err, ErrImmutable) }},
		{"active swap", "head -c 1M /dev/zero >f; chmod 600 f; mkswap -q f; swapon f", "swapoff f", func(err error) bool { return hasProblem(err, extents.ActiveSwap) }},
		{"data journal", "truncate -s 1M f; chattr +j f", "true", func(err error) bool { return hasProblem(err, extents.DataJournal) }},
		{"loop device", "truncate -s 1M f; losetup -f f", "losetup -d $(losetup -n -O NAME -j f)", func(err error) bool { return isRule(err, extents.OpenElsewhere) }},
		{"read-only mount", "truncate -s 1M f; sync; mount -o remount,ro .", "mount -o remount,rw .", func(err error) bool { return errors.Is(err, unix.EROFS) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			shell(t, dir, tt.script)
			t.Cleanup(func() { shell(t, dir, tt.undo+"; while losetup -n -j f | grep -q .; do sleep 0.01; done; rm -f f") })
			before := vmtest.Must(t, "filefrag", "-v", filepath.Join(dir, "f"))
			if _, err := provisionAt(context.Background(), filepath.Join(dir, "f"), Options{}); !tt.refused(err) {
				t.Errorf("got %v", err)
			}
			if after := vmtest.Must(t, "filefrag", "-v", filepath.Join(dir, "f")); after != before {
				t.Errorf("the layout changed from\n%sto\n%s", before, after)
			}
		})
	}
	if _, err := os.Lstat(filepath.Join(dir, "f")); err == nil {
		t.Error("the file is still there")
	}
}
