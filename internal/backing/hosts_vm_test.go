//go:build vmtest

package backing

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/ioctl"
	"dmloop/internal/vmtest"

	"golang.org/x/sys/unix"
)

// host is a file system that images are made on.
type host struct {
	name, fs string
	mkfs     []string
}

var hosts = slices.DeleteFunc([]host{
	{"ext4-4k", "ext4", []string{"-b", "4096"}},
	{"ext4-1k", "ext4", []string{"-b", "1024"}},
	{"xfs-4k", "xfs", []string{"-b", "size=4096"}},
	{"xfs-1k", "xfs", []string{"-b", "size=1024"}},
	{"f2fs", "f2fs", nil},
	{"btrfs", "btrfs", nil},
}, func(h host) bool { return !vmtest.CanMake(h.fs) })

// reflinks reports whether the host can share blocks.
func (h host) reflinks() bool { return h.fs == "xfs" || h.fs == "btrfs" }

// hostSectors is the size of the hosts: the least that xfs takes, so that a test can
// fill one up in a moment.
const hostSectors = 320 << 20 / 512

// mount makes the file system on the beginning of disk 0 and mounts it.
func (h host) mount(t *testing.T) (disk, dir string) {
	t.Helper()
	disk = vmtest.Disk(t, 0)
	if vmtest.Sectors(t, disk) > hostSectors {
		disk = vmtest.DmsetupCreate(t, "small", fmt.Sprintf("0 %d linear %s 0", hostSectors, disk))
	}
	vmtest.Mkfs(t, h.fs, disk, h.mkfs...)
	return disk, vmtest.Mount(t, disk)
}

// soil writes to so many MiB of free blocks and frees them again, so that they do not
// hold zeros.
func soil(t *testing.T, dir string, mib int) {
	t.Helper()
	vmtest.Run(t, "sh", "-c", `tr '\000' '\252' </dev/zero | dd of="$0"/soil bs=1M count="$1" iflag=fullblock oflag=direct status=none`, dir, strconv.Itoa(mib))
	shell(t, dir, "sync -f .; rm soil; sync -f .")
}

func shell(t *testing.T, dir, script string) {
	t.Helper()
	vmtest.Must(t, "sh", "-ec", "cd \"$0\"; "+script, dir)
}

// flags returns what filefrag prints about the extents of a file, without the marks
// that say nothing about the data.
func flags(t *testing.T, path string) string {
	t.Helper()
	var found []string
	for line := range strings.Lines(vmtest.Must(t, "filefrag", "-v", "-e", path)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		for name := range strings.SplitSeq(fields[len(fields)-1], ",") {
			name = strings.TrimSpace(name)
			if strings.Contains(line, "..") && name != "" && name != "last" && name != "eof" && name != "merged" {
				found = append(found, name)
			}
		}
	}
	return strings.Join(found, " ")
}

// onDisk fails the test unless the disk, read past all caches, holds at the addresses
// of the extents what the file holds. It takes the extents from package extents,
// which has its own test against filefrag.
func onDisk(t *testing.T, path, disk string) {
	t.Helper()
	file := open(t, path)
	defer file.Close()
	layout, err := extents.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	device, err := os.OpenFile(disk, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	for _, e := range layout.Clip().Extents {
		want := make([]byte, e.Length)
		if _, err := file.ReadAt(want, int64(e.Logical)); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		got, err := unix.Mmap(-1, 0, len(want), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := device.ReadAt(got, int64(e.Physical)); err != nil || n != len(got) {
			t.Fatalf("%s: %d bytes at %d, %v", disk, n, e.Physical, err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the disk holds other bytes at %d than the file at %d", filepath.Base(path), e.Physical, e.Logical)
		}
		if err := unix.Munmap(got); err != nil {
			t.Fatal(err)
		}
	}
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// pullThePlug stops the file system as a power cut does: nothing that is not in its
// log on the disk gets there any more (XFS_IOC_GOINGDOWN without a log flush, which
// ext4 and f2fs have under the same number).
func pullThePlug(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	how := uint32(2)
	if err := ioctl.Pointer(int(f.Fd()), ioctl.Request{Number: 0x8004587d, Name: "XFS_IOC_GOINGDOWN"}, &how); err != nil {
		t.Fatal(err)
	}
}
