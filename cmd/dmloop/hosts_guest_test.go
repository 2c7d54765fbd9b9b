//go:build vmtest

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/internal/fstype"
	"dmloop/internal/vmtest"
)

// cli runs a command line in this process: starting a program takes longer than most
// commands do.
func cli(args ...string) vmtest.Result {
	var out, errOut bytes.Buffer
	code := run(context.Background(), said(args), &out, &errOut)
	return vmtest.Result{Stdout: out.String(), Stderr: errOut.String(), Code: code}
}

// said adds the word that an image is sealed to a command about one that is on a file
// system on which no file can be marked. Of an image that is plain it says nothing wrong:
// it is asked what it is.
func said(args []string) []string {
	if len(args) == 0 || !slices.Contains([]string{"map", "seal", "unseal", "check", "pin", "table"}, args[0]) {
		return args
	}
	bare := false
	for _, a := range args[1:] {
		if strings.HasPrefix(a, "--pin") || a == "--adopt" {
			return args
		}
		bare = bare || filepath.IsAbs(a) && onBare(a)
	}
	if !bare {
		return args
	}
	return append(slices.Clone(args), "--pin=swap")
}

// onBare reports whether a file is, or would be, where no file can be marked.
func onBare(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(filepath.Dir(path), &st) == nil && fstype.OfMagic(uint32(st.Type)).Bare
}

// expect runs a command line that has to end with this code.
func expect(t testing.TB, code int, args ...string) vmtest.Result {
	t.Helper()
	r := cli(args...)
	if r.Code != code {
		t.Fatalf("dmloop %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.Code, code, r.Stdout, r.Stderr)
	}
	return r
}

// hostKind is a file system as the tests make it.
type hostKind struct {
	name, fstype string
	mkfs         []string
}

var (
	ext4Host   = hostKind{"ext4", "ext4", []string{"-b", "4096"}} // small ones get 1 KiB
	ext4Host1K = hostKind{"ext4-1k", "ext4", []string{"-b", "1024"}}
	xfsHost    = hostKind{"xfs", "xfs", nil}
	xfsHost1K  = hostKind{"xfs-1k", "xfs", []string{"-b", "size=1024"}}
	f2fsHost   = hostKind{"f2fs", "f2fs", nil}
	btrfsHost  = hostKind{"btrfs", "btrfs", nil}

	vfatHost    = hostKind{"vfat", "vfat", []string{"-F", "32"}}
	vfatHost512 = hostKind{"vfat-512", "vfat", []string{"-F", "32", "-s", "1", "-a"}} // clusters of a sector, off the pages
	exfatHost   = hostKind{"exfat", "exfat", nil}
	ntfsHost    = hostKind{"ntfs3", "ntfs3", nil}
)

// bare reports whether files have neither flags nor attributes there.
func (k hostKind) bare() bool { return fstype.Of(k.fstype).Bare }

// known leaves out what this kernel does not have.
func known(t testing.TB, kinds ...hostKind) []hostKind {
	t.Helper()
	return slices.DeleteFunc(slices.Clone(kinds), func(k hostKind) bool { return !vmtest.HasFilesystem(t, k.fstype) })
}

// host is a mounted file system on a stack of devices.
type host struct {
	kind hostKind
	dir  string // where it is mounted
	dev  string // what it is mounted from

	options []string // of mount
	fsck    []string // what the file system's checker has to be told beside the device
}

// border is where the linear stack goes from one disk to the other, in sectors.
const border = 100 << 20 / 512

// hostSize is enough for xfs, which wants 300 MiB, in 512-byte sectors.
const hostSize = 320 << 20 / 512

// stacks are the devices that hosts stand on.
var stacks = map[string]func(t testing.TB) string{
	"shim": func(t testing.TB) string {
		disk := smallDisk(t, 0)
		expect(t, 0, "shim", disk, "host")
		t.Cleanup(func() { vmtest.DmsetupRemove(t, "host") })
		return "/dev/mapper/host"
	},
	"linear": func(t testing.TB) string {
		a, b := vmtest.Disk(t, 0), vmtest.Disk(t, 1)
		return vmtest.DmsetupCreate(t, "host", fmt.Sprintf("0 %d linear %s 12288\n%d %d linear %s 4096\n",
			border, a, border, hostSize-border, b))
	},
	"striped": func(t testing.TB) string {
		a, b := vmtest.Disk(t, 0), vmtest.Disk(t, 1)
		return vmtest.DmsetupCreate(t, "host", fmt.Sprintf("0 %d striped 2 128 %s 2048 %s 8192\n", hostSize, a, b))
	},
}

// smallDisk is a disk of hostSize: mkfs and checks of the whole would take long.
func smallDisk(t testing.TB, i int) string {
	t.Helper()
	return vmtest.DmsetupCreate(t, fmt.Sprintf("small%d", i), fmt.Sprintf("0 %d linear %s 0\n", hostSize, vmtest.Disk(t, i)))
}

// newHost makes a file system on a stack and mounts it.
func newHost(t testing.TB, kind hostKind, stack string, mount ...string) *host {
	t.Helper()
	return newHostOn(t, kind, stacks[stack](t), mount...)
}

// newHostOn makes a file system on a device and mounts it.
func newHostOn(t testing.TB, kind hostKind, dev string, mount ...string) *host {
	t.Helper()
	vmtest.Mkfs(t, kind.fstype, dev, kind.mkfs...)
	if len(mount) == 0 {
		mount = vmtest.MountOptions(kind.fstype)
	}
	return &host{kind: kind, dev: dev, dir: vmtest.Mount(t, dev, mount...), options: mount}
}

func (h *host) path(name string) string { return filepath.Join(h.dir, name) }

// image makes an image with dmloop create.
func (h *host) image(t testing.TB, name, size string) string {
	t.Helper()
	expect(t, 0, "create", h.path(name), size)
	return h.path(name)
}

// roomAtBorder leaves free space only around the border of the linear stack, so that
// an image of 24 MiB has to lie on both disks.
func (h *host) roomAtBorder(t testing.TB) {
	t.Helper()
	h.fillExcept(t, border*512-16<<20, border*512+16<<20)
}

// fillExcept takes the free space of the file system except for a stretch of its
// device.
func (h *host) fillExcept(t testing.TB, from, to int64) {
	t.Helper()
	filler := h.path("filler")
	var blocks, block int64
	if _, err := fmt.Sscan(vmtest.Must(t, "stat", "-f", "-c", "%a %S", h.dir), &blocks, &block); err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "fallocate", "-l", fmt.Sprint(blocks*block-6<<20), filler)
	for _, e := range filefrag(t, filler) {
		lo, hi := max(e.Physical, from), min(e.Physical+e.Length, to)
		if lo < hi {
			vmtest.Must(t, "fallocate", "-p", "-o", fmt.Sprint(e.Logical+lo-e.Physical), "-l", fmt.Sprint(hi-lo), filler)
		}
	}
	vmtest.Must(t, "sync")
}

// remount makes the file system read everything from the disk again.
func (h *host) remount(t testing.TB) {
	t.Helper()
	vmtest.Must(t, "umount", h.dir)
	h.mount(t)
}

func (h *host) mount(t testing.TB) {
	t.Helper()
	vmtest.Must(t, append(append([]string{"mount"}, h.options...), h.dev, h.dir)...)
}

// check runs the file system's own checker.
func (h *host) check(t testing.TB) {
	t.Helper()
	vmtest.Must(t, "umount", h.dir)
	tool := map[string][]string{"ext4": {"e2fsck", "-fn"}, "xfs": {"xfs_repair", "-n"}, "f2fs": {"fsck.f2fs", "--dry-run"},
		"btrfs": {"btrfs", "check", "--readonly"}, "vfat": {"fsck.vfat", "-n"}, "exfat": {"fsck.exfat", "-n"}, "ntfs3": {"ntfsfix", "-n"}}[h.kind.fstype]
	if r := vmtest.Run(t, slices.Concat(tool, h.fsck, []string{h.dev})...); r.Code != 0 {
		t.Errorf("%s: exit code %d\n%s%s", tool[0], r.Code, r.Stdout, r.Stderr)
	}
	h.mount(t)
}

// mapIt maps an image and has it unmapped when the test ends.
func mapIt(t testing.TB, image, name string, flags ...string) string {
	t.Helper()
	r := expect(t, 0, append([]string{"map", "--no-guard", "--unsafe", image, name}, flags...)...)
	t.Cleanup(func() {
		if r := cli("unmap", name); r.Code != 0 && r.Code != 6 {
			t.Errorf("unmap %s: exit code %d\n%s", name, r.Code, r.Stderr)
		}
	})
	return strings.TrimSpace(r.Stdout)
}

// fill overwrites a file or device with reproducible bytes, through to the disk, and
// returns their checksum.
func fill(t testing.TB, path string, size int64, seed byte) string {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var key [32]byte
	key[0] = seed
	buf := make([]byte, 1<<20)
	stream := rand.NewChaCha8(key)
	for at := int64(0); at < size; at += int64(len(buf)) {
		part := buf[:min(size-at, int64(len(buf)))]
		if _, err := io.ReadFull(stream, part); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(part, at); err != nil {
			t.Fatalf("write %s: %v", path, err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return vmtest.ChecksumFile(t, path)
}

// nothingLeft fails the test when anything of dmloop's is left.
func nothingLeft(t testing.TB, images ...string) {
	t.Helper()
	if records, _ := filepath.Glob("/run/dmloop/*.mapping"); len(records) > 0 {
		t.Errorf("records left: %q", records)
	}
	if rest, _ := filepath.Glob("/run/dmloop/.*.new"); len(rest) > 0 {
		t.Errorf("half-written records left: %q", rest)
	}
	for _, line := range strings.Split(vmtest.Must(t, "dmsetup", "info", "-c", "--noheadings", "-o", "name,uuid"), "\n") {
		if strings.Contains(line, ":DMLOOP-") {
			t.Errorf("device left: %s", line)
		}
	}
	for _, image := range images {
		unpinned(t, image)
	}
}

// unpinned fails the test when an image has a flag or the pin's mark of dmloop.
func unpinned(t testing.TB, image string) {
	t.Helper()
	if onBare(image) {
		if swaps := vmtest.Must(t, "cat", "/proc/swaps"); strings.Contains(swaps, image) {
			t.Errorf("still swap: %s", swaps)
		}
		if rest, _ := filepath.Glob(filepath.Join(filepath.Dir(image), "*.dmloop-*")); len(rest) > 0 {
			t.Errorf("left beside it: %q", rest)
		}
		return
	}
	r := vmtest.Run(t, "lsattr", "-d", image)
	if flags, _, _ := strings.Cut(r.Stdout, " "); r.Code != 0 || strings.Contains(flags, "i") {
		t.Errorf("%s has the flags %s %s", image, flags, r.Stderr)
	}
	if r := vmtest.Run(t, "getfattr", "--absolute-names", "-d", "-m", `dmloop\.pin`, image); r.Stdout != "" {
		t.Errorf("%s has the attributes %s", image, r.Stdout)
	}
}
