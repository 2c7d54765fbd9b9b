//go:build vmtest

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"dmloop/internal/fstype"
	"dmloop/internal/vmtest"
)

// sealedHosts are the file systems that sealing is for.
var sealedHosts = slices.DeleteFunc([]hostKind{ext4Host, ext4Host1K, xfsHost, f2fsHost, btrfsHost, vfatHost, exfatHost, ntfsHost},
	func(kind hostKind) bool { return !vmtest.CanMake(kind.fstype) })

func eachSealedHost(t *testing.T, test func(t *testing.T, h *host)) {
	for _, kind := range known(t, sealedHosts...) {
		t.Run(kind.name, func(t *testing.T) { test(t, newHost(t, kind, "shim")) })
	}
}

// eachMarkedHost leaves out the file systems on which files have neither flags nor attributes: what
// holds there is in the tests of bare hosts.
func eachMarkedHost(t *testing.T, test func(t *testing.T, h *host)) {
	eachSealedHost(t, func(t *testing.T, h *host) {
		if !fstype.Of(h.kind.fstype).Bare {
			test(t, h)
		}
	})
}

// block returns the size of the file system's blocks.
func (h *host) block(t testing.TB) int64 {
	t.Helper()
	n, err := strconv.ParseInt(strings.TrimSpace(vmtest.Must(t, "stat", "-f", "-c", "%S", h.dir)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// mapSealed maps a sealed image without a guard and without --unsafe, until the test
// ends.
func mapSealed(t testing.TB, image, name string, flags ...string) string {
	t.Helper()
	r := expect(t, 0, append([]string{"map", "--no-guard", image, name}, flags...)...)
	t.Cleanup(func() {
		if r := cli("unmap", name); r.Code != 0 && r.Code != 6 {
			t.Errorf("unmap %s: exit code %d\n%s", name, r.Code, r.Stderr)
		}
	})
	if grade := expect(t, 0, "list", "-n", "--raw", "-o", "GRADE,STATE", name).Stdout; grade != "kernel healthy\n" {
		t.Errorf("%s: %q", name, grade)
	}
	expect(t, 0, "verify", name)
	return strings.TrimSpace(r.Stdout)
}

// unsealed makes the image plain again, which then has the content of the given sum and
// no trace of having been mapped.
func unsealed(t testing.TB, image, sum string) {
	t.Helper()
	expect(t, 0, "unseal", image)
	if vmtest.ChecksumFile(t, image) != sum {
		t.Error("unsealed to something else")
	}
	if seal := sealMark(t, image); seal != "" {
		t.Errorf("unsealed, and the attribute is %s", seal)
	}
	nothingLeft(t, image)
}

// neighbours writes files between which images lie, and returns a check that they
// are what they were, on the disk and not only in memory.
func (h *host) neighbours(t testing.TB, n int) (check func(t testing.TB)) {
	t.Helper()
	sums := map[string]string{}
	for i := range n {
		path := h.path(fmt.Sprintf("neighbour%d", i))
		vmtest.RandomFile(t, path, 2<<20, uint64(90+i))
		sums[path] = vmtest.ChecksumFile(t, path)
	}
	return func(t testing.TB) {
		t.Helper()
		vmtest.Must(t, "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
		for path, sum := range sums {
			if vmtest.ChecksumFile(t, path) != sum {
				t.Errorf("%s changed", path)
			}
		}
	}
}

// Images of odd sizes are sealed, mapped, written to, mapped again and made plain
// again; nothing of that is seen by the neighbours or by the file system's checker.
func TestSealedSizes(t *testing.T) {
	sizes := func(t *testing.T, h *host) {
		unchanged := h.neighbours(t, 2)
		block, page := h.block(t), int64(os.Getpagesize())
		for i, size := range []int64{block, 2*page + block, 17 * block, 1<<20 - block, 4<<20 + 3*block} {
			name := fmt.Sprintf("i%d", i)
			image := h.image(t, name+".img", fmt.Sprint(size))
			was := fill(t, image, size, byte(i))
			expect(t, 0, "seal", image)
			expect(t, 0, "seal", image) // again is nothing
			if out := vmtest.Must(t, "blkid", "-p", "-o", "export", image); !strings.Contains(out, "TYPE=swap\n") || !strings.Contains(out, "LABEL=dmloop\n") {
				t.Errorf("blkid: %s", out)
			}
			want := expect(t, 0, "table", image).Stdout
			for round := range 2 {
				dev := mapSealed(t, image, name)
				if got := vmtest.Must(t, "dmsetup", "table", name); got != want && h.kind.fstype != "f2fs" {
					t.Errorf("%d bytes: table is\n%s\ndmloop table printed\n%s", size, got, want)
				}
				if sectors := vmtest.Sectors(t, dev); sectors != size/512 {
					t.Errorf("the device has %d sectors, want %d", sectors, size/512)
				}
				if vmtest.ChecksumFile(t, dev) != was {
					t.Fatalf("%d bytes, round %d: the device shows something else", size, round)
				}
				if r := cli("unseal", image); r.Code != 5 || !strings.Contains(r.Stderr, "mapped already as "+name) {
					t.Errorf("unseal of a mapped image: exit code %d, %s", r.Code, r.Stderr)
				}
				was = fill(t, dev, size, byte(50+10*round+i))
				expect(t, 0, "verify", name)
				expect(t, 0, "unmap", name)
			}
			checked(t, image, size, true)
			expect(t, 0, "unseal", image)
			expect(t, 0, "unseal", image)
			checked(t, image, size, false)
			if got := vmtest.ChecksumFile(t, image); got != was {
				t.Fatalf("%d bytes: unsealed to something else", size)
			}
			nothingLeft(t, image)
		}
		unchanged(t)
		h.check(t)
		unchanged(t)
	}
	eachSealedHost(t, sizes)
	if everything() {
		t.Run(vfatHost512.name, func(t *testing.T) { sizes(t, newHost(t, vfatHost512, "shim")) })
	}
}

// checked fails the test when check says something else of an image. One that is not
// sealed is not mappable on btrfs, nor on a newer f2fs when it was not made pinned.
func checked(t testing.TB, image string, size int64, sealed bool) {
	t.Helper()
	var got checkJSON
	if err := json.Unmarshal([]byte(cli("check", "--json", image).Stdout), &got); err != nil {
		t.Fatal(err)
	}
	if c := got.Images[0]; int64(c.Size) != size || c.Sealed != sealed || sealed && !c.Mappable {
		t.Errorf("check: %+v; want %d bytes, sealed %v, and mappable when sealed", c, size, sealed)
	}
	if out := cli("check", image).Stdout; strings.HasSuffix(out, ", sealed)\n") != sealed {
		t.Errorf("check: %s", out)
	}
}

// A file system on a sealed image survives being mounted, written to, checked, mapped
// again, and the end of the seal. The image is made and sealed by one command.
func TestSealedFileSystemInside(t *testing.T) {
	eachSealedHost(t, func(t *testing.T, h *host) {
		unchanged := h.neighbours(t, 2)
		image := h.path("image.img")
		expect(t, 0, "seal", "--create", "48M", image)
		var inside [][2]string // name, checksum
		for round := range 3 {
			if round == 2 { // made plain, and sealed and mapped in one go
				expect(t, 0, "unseal", image)
				vmtest.Must(t, "e2fsck", "-fn", image)
			}
			dev := mapSealed(t, image, "vol", "--seal")
			if round == 0 {
				vmtest.Mkfs(t, "ext4", dev)
			}
			dir := vmtest.Mount(t, dev)
			for _, f := range inside {
				if vmtest.ChecksumFile(t, filepath.Join(dir, f[0])) != f[1] {
					t.Fatalf("round %d: %s changed", round, f[0])
				}
			}
			for i := range 5 {
				name := fmt.Sprintf("f%d-%d", round, i)
				vmtest.RandomFile(t, filepath.Join(dir, name), 2<<20, uint64(10*round+i))
				if i == 1 {
					vmtest.Must(t, "rm", filepath.Join(dir, name))
					continue
				}
				inside = append(inside, [2]string{name, vmtest.ChecksumFile(t, filepath.Join(dir, name))})
			}
			if r := cli("unmap", "vol"); r.Code != 5 {
				t.Errorf("unmap while mounted: exit code %d, %s", r.Code, r.Stderr)
			}
			vmtest.Umount(t, dir)
			vmtest.Must(t, "e2fsck", "-fn", dev)
			expect(t, 0, "verify", "vol")
			expect(t, 0, "unmap", "vol")
		}
		expect(t, 0, "unseal", image)
		vmtest.Must(t, "e2fsck", "-fn", image)
		unchanged(t)
		h.check(t)
		nothingLeft(t, image)
	})
}

// A sparse image of 1 GiB is made full by provision, sealed and mapped: the device
// shows at every offset what the file had.
func TestLongSealedGiB(t *testing.T) {
	for _, kind := range known(t, sealedHosts...) {
		t.Run(kind.name, func(t *testing.T) { sealedGiB(t, kind) })
	}
}

// Where everything is emulated one file system is enough.
func TestQemuSealedGiB(t *testing.T) { sealedGiB(t, ext4Host) }

func sealedGiB(t *testing.T, kind hostKind) {
	disk := vmtest.Disk(t, 0)
	expect(t, 0, "shim", disk, "host")
	t.Cleanup(func() { vmtest.DmsetupRemove(t, "host") })
	vmtest.Mkfs(t, kind.fstype, "/dev/mapper/host", kind.mkfs...)
	h := &host{kind: kind, dev: "/dev/mapper/host", dir: vmtest.Mount(t, "/dev/mapper/host", vmtest.MountOptions(kind.fstype)...)}
	const size = 1 << 30
	image := h.path("image.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if kind.fstype == "btrfs" {
		vmtest.Must(t, "chattr", "+C", image)
	}
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	piece := make([]byte, 100_000)
	for at := int64(1000); at < size-int64(len(piece)); at += 37_000_001 { // holes between, and off any block
		for i := range piece {
			piece[i] = byte(at>>12) + byte(i)
		}
		if _, err := f.WriteAt(piece, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	sum := vmtest.ChecksumFile(t, image)
	expect(t, 3, "check", image)
	expect(t, 0, "provision", image)
	expect(t, 0, "seal", image)
	dev := mapSealed(t, image, "vol")
	if sectors := vmtest.Sectors(t, dev); sectors != size/512 {
		t.Errorf("%d sectors", sectors)
	}
	if vmtest.ChecksumFile(t, dev) != sum {
		t.Error("the device shows something else")
	}
	expect(t, 0, "unmap", "vol")
	unsealed(t, image, sum)
}

// On btrfs, images in subvolumes with snapshots, and files that it cannot lend.
func TestSealedBtrfs(t *testing.T) {
	h := newHost(t, btrfsHost, "shim")
	cow := h.path("cow.img")
	vmtest.RandomFile(t, cow, 1<<20, 1)
	before := trace(t, cow)
	if r := expect(t, 3, "seal", cow); !strings.Contains(r.Stderr, "(btrfs-cow)") {
		t.Errorf("seal of a file that is copied on write: %s", r.Stderr)
	}
	if after := trace(t, cow); after != before {
		t.Errorf("the file was\n%s\nand is\n%s", before, after)
	}

	sub, image := h.path("sub"), h.path("sub/image.img")
	vmtest.Must(t, "btrfs", "-q", "subvolume", "create", sub)
	expect(t, 0, "create", image, "4M")
	old := fill(t, image, 4<<20, 2)
	snapshot := h.path("snapshot")
	vmtest.Must(t, "btrfs", "-q", "subvolume", "snapshot", sub, snapshot)
	if r := expect(t, 3, "check", image); !strings.Contains(r.Stdout, "(shared)") {
		t.Errorf("check of a snapshot's file: %s", r.Stdout)
	}
	if r := expect(t, 3, "seal", image); !strings.Contains(r.Stderr, "(shared)") {
		t.Errorf("seal of a snapshot's file: %s", r.Stderr)
	}
	expect(t, 0, "provision", image)
	expect(t, 0, "seal", image)
	dev := mapSealed(t, image, "vol")
	if vmtest.ChecksumFile(t, dev) != old {
		t.Error("the device shows something else")
	}
	sum := fill(t, dev, 4<<20, 3)
	if vmtest.Run(t, "btrfs", "subvolume", "snapshot", sub, h.path("another")).Code == 0 {
		t.Error("a snapshot of a mapped image was made")
	}
	if vmtest.Run(t, "btrfs", "subvolume", "delete", sub).Code == 0 {
		t.Error("the subvolume of a mapped image was deleted")
	}
	vmtest.Must(t, "btrfs", "-q", "subvolume", "snapshot", snapshot, h.path("another")) // no image of ours in there
	vmtest.Must(t, "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
	for _, dir := range []string{snapshot, h.path("another")} {
		if vmtest.ChecksumFile(t, filepath.Join(dir, "image.img")) != old {
			t.Errorf("the file in %s changed", dir)
		}
	}
	expect(t, 0, "verify", "vol")
	expect(t, 0, "unmap", "vol")
	unsealed(t, image, sum)
	h.check(t)
}
