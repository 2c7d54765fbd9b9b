//go:build vmtest

package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/vmtest"
)

// blockHost is a host whose blocks, of the disk or of the file system, are not the usual ones.
type blockHost struct {
	name   string
	disk   int64  // logical blocks of the disk in bytes; 0: as the guest's disks are
	second string // what a second disk is for: log, journal or realtime
	kind   hostKind
	block  int64    // of the file system, in bytes
	mounts []string // kernels that mount it; all when empty
	odd    int64    // a size of which it is no multiple
}

// The kernels with blocks that are larger than a page: xfs since 6.12, disks since 6.15, ext4
// since 6.19.
var (
	xfsLarge  = []string{"6.12", "new"}
	ext4Large = []string{"new"}
	diskLarge = []string{"new"}
	nowhere   = []string{"none of them"}
)

var blockHosts = []blockHost{
	{name: "ext4, disk with sectors of 4096", disk: 4096, kind: ext4Host, block: 4096, odd: 64<<10 + 512},
	{name: "xfs, disk with sectors of 4096", disk: 4096, kind: xfsHost, block: 4096, odd: 64<<10 + 512},
	{name: "f2fs, disk with sectors of 4096", disk: 4096, kind: f2fsHost, block: 4096, odd: 64<<10 + 512},
	{name: "btrfs, disk with sectors of 4096", disk: 4096, kind: btrfsHost, block: 4096, odd: 64<<10 + 512},
	{name: "ext4, blocks of 1 KiB", kind: ext4Host1K, block: 1024, odd: 64<<10 + 512},
	{name: "ext4, blocks of 2 KiB", kind: hostKind{"ext4-2k", "ext4", []string{"-b", "2048"}}, block: 2048, odd: 64<<10 + 1024},
	{name: "ext4, clusters of 64 KiB", kind: hostKind{"bigalloc", "ext4", []string{"-b", "4096", "-O", "bigalloc", "-C", "65536"}}, block: 4096, odd: 64<<10 + 512},
	{name: "ext4, blocks of 64 KiB", kind: hostKind{"ext4-64k", "ext4", []string{"-b", "65536"}}, block: 64 << 10, mounts: ext4Large, odd: 64<<10 + 4096},
	{name: "ext4, journal on another disk", second: "journal", kind: ext4Host, block: 4096},
	{name: "xfs, blocks of 1 KiB", kind: xfsHost1K, block: 1024, odd: 64<<10 + 512},
	{name: "xfs, blocks of 16 KiB", kind: hostKind{"xfs-16k", "xfs", []string{"-b", "size=16384"}}, block: 16 << 10, mounts: xfsLarge, odd: 64<<10 + 4096},
	{name: "xfs, blocks of 64 KiB", kind: hostKind{"xfs-64k", "xfs", []string{"-b", "size=65536"}}, block: 64 << 10, mounts: xfsLarge, odd: 64<<10 + 4096},
	{name: "xfs, blocks of 64 KiB, disk with sectors of 4096", disk: 4096, kind: hostKind{"xfs-64k", "xfs", []string{"-b", "size=65536"}},
		block: 64 << 10, mounts: xfsLarge, odd: 64<<10 + 4096},
	{name: "xfs, blocks of 64 KiB, disk with sectors of 16 KiB", disk: 16 << 10, kind: hostKind{"xfs-64k", "xfs", []string{"-b", "size=65536"}},
		block: 64 << 10, mounts: diskLarge, odd: 64<<10 + 16<<10},
	{name: "xfs, log on another disk", second: "log", kind: xfsHost, block: 4096},
	{name: "xfs, real-time section that the file does not use", second: "realtime", kind: hostKind{"xfs", "xfs", []string{"-m", "reflink=0,rmapbt=0"}}, block: 4096},
	{name: "btrfs, sectors of 16 KiB", kind: hostKind{"btrfs-16k", "btrfs", []string{"-s", "16384", "-n", "16384"}}, block: 16 << 10, mounts: nowhere},
}

// Whatever the sizes of blocks are, an image maps right, both ways, plain and sealed, or is refused
// by name. docs/testing.md has what these lines said.
func TestBlockSizes(t *testing.T) {
	for _, b := range blockHosts {
		t.Run(b.name, func(t *testing.T) { b.run(t) })
	}
}

// The same for the largest blocks alone, on every change.
func TestQemuLargeBlocks(t *testing.T) {
	for _, b := range blockHosts {
		if b.block == 64<<10 && b.disk == 0 {
			t.Run(b.name, func(t *testing.T) { b.run(t) })
		}
	}
}

func (b blockHost) run(t *testing.T) {
	says := func(outcome string) { t.Logf("BLOCKS|%s|%s|%s", vmtest.Kernel(t), b.name, outcome) }
	h := b.make(t)
	if h == nil {
		says("not had from the kernel")
		return
	}
	var block int64
	if _, err := fmt.Sscan(vmtest.Must(t, "stat", "-f", "-c", "%S", h.dir), &block); err != nil || block != b.block {
		t.Fatalf("the file system has blocks of %d bytes, %v", block, err)
	}
	if d := checkedDirectory(t, 0, h.dir); d.UUID == "" {
		t.Error("the disk could not be read")
	}
	outcome := "mapped"
	if b.kind.fstype != "btrfs" { // which has sealed images only
		bothWays(t, h, 8<<20)
		if err := os.Remove(h.path("image.img")); err != nil {
			t.Fatal(err)
		}
	}
	if b.sealed(t, h) {
		outcome += ", sealed too"
		if b.kind.fstype == "btrfs" {
			outcome = "mapped when it is sealed"
		}
	} else {
		outcome += "; not sealed: unpinnable"
	}
	if b.odd != 0 {
		b.oddSize(t, h)
		outcome += fmt.Sprintf("; a file of %d bytes: size-unaligned", b.odd)
	}
	if b.second == "realtime" {
		provoke(t, h, []provoked{{"a file in the real-time section", "xfs_io -f -c 'chattr +r' f; head -c 1M /dev/urandom >f; sync f", "realtime", whole, 0, 0, ""}})
		outcome += "; a file in the real-time section: realtime"
	}
	h.check(t)
	says(outcome)
}

// make mounts the host, nil when this kernel does not and is known not to.
func (b blockHost) make(t *testing.T) *host {
	t.Helper()
	disk := ""
	switch {
	case b.disk == 0:
		disk = smallDisk(t, 0)
	case b.disk > int64(os.Getpagesize()) && !slices.Contains(b.mounts, vmtest.Kernel(t)):
		if r := vmtest.Run(t, "losetup", "-f", "--show", "-b", fmt.Sprint(b.disk), vmtest.Disk(t, 0)); r.Code == 0 {
			vmtest.Must(t, "losetup", "-d", strings.TrimSpace(r.Stdout))
			t.Fatal("this kernel has such disks: say so in the table")
		}
		return nil
	default:
		disk = sectorsOf(t, b.disk, vmtest.Disk(t, 0))
	}
	dev := vmtest.Shim(t, disk, hostName)
	h := &host{kind: b.kind, dev: dev}
	mkfs := b.kind.mkfs
	if b.second != "" {
		other := smallDisk(t, 1)
		switch b.second {
		case "log":
			mkfs, h.options, h.fsck = []string{"-l", "logdev=" + other}, []string{"-o", "logdev=" + other}, []string{"-l", other}
		case "journal":
			vmtest.Must(t, "mke2fs", "-q", "-F", "-O", "journal_dev", "-b", "4096", other)
			mkfs, h.options, h.fsck = append(slices.Clone(mkfs), "-J", "device="+other), []string{"-o", "journal_path=" + other}, []string{"-j", other}
		case "realtime":
			mkfs, h.options, h.fsck = append(slices.Clone(mkfs), "-r", "rtdev="+other), []string{"-o", "rtdev=" + other}, []string{"-r", other}
		}
	}
	vmtest.Mkfs(t, b.kind.fstype, dev, mkfs...)
	if b.mounts != nil && !slices.Contains(b.mounts, vmtest.Kernel(t)) {
		dir := t.TempDir()
		if r := vmtest.Run(t, "mount", dev, dir); r.Code == 0 {
			vmtest.Must(t, "umount", dir)
			t.Fatal("this kernel mounts it: say so in the table, and see what it does")
		}
		return nil
	}
	h.dir = vmtest.Mount(t, dev, h.options...)
	return h
}

// sealed seals an image and maps it, both ways; false when it cannot be sealed there, and then is
// refused by name and left as it was.
func (b blockHost) sealed(t *testing.T, h *host) bool {
	t.Helper()
	const size = 4 << 20
	image := h.image(t, "sealed.img", fmt.Sprint(size))
	defer os.Remove(image)
	wrote := fill(t, image, size, 3)
	if b.block > int64(os.Getpagesize()) {
		before := trace(t, image)
		r := expect(t, 3, "seal", image)
		if !strings.Contains(r.Stderr, "(unpinnable)") || !strings.Contains(r.Stderr, "larger than the kernel's pages") {
			t.Errorf("seal says %s", r.Stderr)
		}
		if after := trace(t, image); after != before {
			t.Errorf("the file was\n%s\nand is\n%s", before, after)
		}
		return false
	}
	expect(t, 0, "seal", image)
	dev := mapIt(t, image, "sealed")
	if got := vmtest.ChecksumFile(t, dev); got != wrote {
		t.Error("the device of the sealed image does not show what was in it")
	}
	wrote = fill(t, dev, size, 4)
	expect(t, 0, "unmap", "sealed")
	expect(t, 0, "unseal", image)
	h.remount(t)
	if got := vmtest.ChecksumFile(t, image); got != wrote {
		t.Error("the unsealed file does not hold what was written through the device")
	}
	nothingLeft(t, image)
	return true
}

// oddSize has a file refused whose size is a multiple of some blocks and not of these, and maps
// the whole blocks of it.
func (b blockHost) oddSize(t *testing.T, h *host) {
	t.Helper()
	image := h.path("odd.img")
	shell(t, h.dir, fmt.Sprintf("touch odd.img; %s head -c %d /dev/urandom >odd.img; sync odd.img",
		map[bool]string{true: "chattr +C odd.img;"}[b.kind.fstype == "btrfs"], b.odd))
	defer os.Remove(image)
	rest := b.odd % b.block
	refused(t, image, provoked{rule: "size-unaligned", offset: extents.Bytes(b.odd - rest), length: extents.Bytes(rest)})
	if r := expect(t, 3, "check", "--offset", fmt.Sprint(rest), "--sizelimit", fmt.Sprint(b.block), image); !strings.Contains(r.Stdout, "the offset") {
		t.Errorf("an offset within a block: %s", r.Stdout)
	}
	if b.kind.fstype == "btrfs" || b.kind.fstype == "f2fs" && vmtest.Kernel(t) != "uml" && vmtest.Kernel(t) != "6.1" { // not without a seal, or not a written file
		return
	}
	window := []string{"--sizelimit", fmt.Sprint(b.odd - rest)}
	dev := mapIt(t, image, "odd", window...)
	want := vmtest.Must(t, "sh", "-c", fmt.Sprintf("head -c %d %s | sha256sum", b.odd-rest, image))
	if got := vmtest.Must(t, "sh", "-c", "sha256sum <"+dev); got != want {
		t.Error("the window shows something else")
	}
	expect(t, 0, "unmap", "odd")
	nothingLeft(t, image)
}

// sectorsOf is a disk with logical blocks of so many bytes: a loop device on another disk.
func sectorsOf(t testing.TB, block int64, below string) string {
	t.Helper()
	disk := strings.TrimSpace(vmtest.Must(t, "losetup", "-f", "--show", "-b", fmt.Sprint(block), "--sizelimit", fmt.Sprint(hostSize*512), below))
	t.Cleanup(func() { vmtest.Must(t, "losetup", "-d", disk) })
	if got := sectorSize(t, disk); got != block {
		t.Fatalf("its sectors have %d bytes", got)
	}
	return disk
}

// sectorSize is the size of a device's logical blocks in bytes.
func sectorSize(t testing.TB, dev string) (size int64) {
	t.Helper()
	if _, err := fmt.Sscan(vmtest.Must(t, "blockdev", "--getss", dev), &size); err != nil {
		t.Fatal(err)
	}
	return size
}

// A file system with small blocks whose device came to lie on a disk with larger ones: what
// begins and ends on those still maps, and the rest is refused. Newer kernels fail to read such a
// file at all.
func TestFullDiskWithLargerBlocksThanTheFileSystem(t *testing.T) {
	below := vmtest.Disk(t, 0)
	small := sectorsOf(t, 512, below)
	// Nothing of it may have to be written while the disk is the other one.
	kind := hostKind{"", "ext4", []string{"-b", "1024", "-O", "^has_journal"}}
	h := newHostOn(t, kind, vmtest.DmsetupCreate(t, hostName, fmt.Sprintf("0 %d linear %s 0\n", hostSize, small)), "-o", "noatime")
	shell(t, h.dir, "head -c 5K /dev/urandom >odd; head -c 64K /dev/urandom >even; sync odd even")
	expect(t, 0, "check", h.path("odd"), h.path("even"))
	vmtest.Must(t, "sync")
	large := sectorsOf(t, 4096, below)
	reload := func(disk string) {
		t.Helper()
		if r := vmtest.RunInput(t, fmt.Sprintf("0 %d linear %s 0\n", hostSize, disk), "dmsetup", "load", hostName); r.Code != 0 {
			t.Fatal(r.Stderr)
		}
		vmtest.Must(t, "dmsetup", "resume", hostName)
	}
	reload(large)
	defer reload(small)
	if got := sectorSize(t, h.dev); got != 4096 {
		t.Fatalf("the host device has sectors of %d bytes", got)
	}
	r := expect(t, 3, "check", "--json", h.path("odd"))
	if !strings.Contains(r.Stdout, "the size 5120 is not a multiple of the device's block of 4096 bytes") || !strings.Contains(r.Stdout, "size-unaligned") {
		t.Errorf("%s", r.Stdout)
	}
	if r := expect(t, 3, "check", "--offset", "1024", "--sizelimit", "4096", h.path("even")); !strings.Contains(r.Stdout, "the offset 1024 is not a multiple of the device's block") {
		t.Errorf("%s", r.Stdout)
	}
	even := cli("check", h.path("even"))
	aligned := !slices.ContainsFunc(filefrag(t, h.path("even")), func(e row) bool { return e.Physical%4096 != 0 || e.Length%4096 != 0 })
	if (even.Code == 0) != aligned || !aligned && !strings.Contains(even.Stdout, "(not-aligned)") {
		t.Errorf("aligned %v, and check says %s", aligned, even.Stdout)
	}
}
