//go:build vmtest

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

// sealedHosts are the file systems that sealing is for.
var sealedHosts = []hostKind{ext4Host, ext4Host1K, xfsHost, f2fsHost, btrfsHost}

func eachSealedHost(t *testing.T, test func(t *testing.T, h *host)) {
	for _, kind := range sealedHosts {
		t.Run(kind.name, func(t *testing.T) { test(t, newHost(t, kind, "shim")) })
	}
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
	eachSealedHost(t, func(t *testing.T, h *host) {
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
			expect(t, 0, "check", image)
			expect(t, 0, "unseal", image)
			expect(t, 0, "unseal", image)
			if got := vmtest.ChecksumFile(t, image); got != was {
				t.Fatalf("%d bytes: unsealed to something else", size)
			}
			nothingLeft(t, image)
		}
		unchanged(t)
		h.check(t)
		unchanged(t)
	})
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

// A sealed image that says what it is and is used as plain swap keeps its payload.
func TestSealedUsedAsSwap(t *testing.T) {
	eachSealedHost(t, func(t *testing.T, h *host) {
		image := h.image(t, "image.img", fmt.Sprint(4<<20+h.block(t)))
		sum := fill(t, image, 4<<20+h.block(t), 1)
		expect(t, 0, "seal", image)
		vmtest.Must(t, "chmod", "600", image)
		vmtest.Must(t, "swapon", image)
		if r := cli("map", "--no-guard", image, "vol"); r.Code != 5 || !strings.Contains(r.Stderr, "active-swap") {
			t.Errorf("map: exit code %d, %s", r.Code, r.Stderr)
		}
		if r := cli("unseal", image); r.Code != 5 || !strings.Contains(r.Stderr, "active-swap") {
			t.Errorf("unseal: exit code %d, %s", r.Code, r.Stderr)
		}
		vmtest.Must(t, "swapoff", image)
		// What the kernel paged to it, dmloop wipes when it lets go of the image.
		page := os.Getpagesize()
		somebodys := bytes.Repeat([]byte("secret! "), page/8)
		if err := onFile(image, os.O_WRONLY, func(f *os.File) error { _, err := f.WriteAt(somebodys, int64(page)); return err }); err != nil {
			t.Fatal(err)
		}
		if vmtest.ChecksumFile(t, mapSealed(t, image, "vol")) != sum {
			t.Error("the device shows something else")
		}
		expect(t, 0, "unmap", "vol")
		if err := onFile(image, os.O_RDONLY, func(f *os.File) error { _, err := f.ReadAt(somebodys, int64(page)); return err }); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(somebodys, make([]byte, page)) {
			t.Error("the page of swap is not wiped")
		}
		expect(t, 0, "unseal", image)
		if vmtest.ChecksumFile(t, image) != sum {
			t.Error("the image changed")
		}
	})
}

// The kernel takes so many sealed mappings and no more. The one that it has no place
// for is refused for that reason, and is as it was.
func TestSealedUntilTheKernelIsFull(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	var sums []string
	for i := 0; ; i++ {
		name := fmt.Sprintf("i%d", i)
		image := h.image(t, name+".img", "64K")
		sum := fill(t, image, 64<<10, byte(i))
		expect(t, 0, "seal", image)
		sealed := vmtest.ChecksumFile(t, image)
		r := cli("map", "--no-guard", image, name)
		if r.Code == 0 {
			t.Cleanup(func() {
				if r := cli("unmap", name); r.Code != 0 && r.Code != 6 {
					t.Errorf("unmap %s: %s", name, r.Stderr)
				}
			})
			sums = append(sums, sum)
			if i > 40 {
				t.Fatal("there is no end to it")
			}
			continue
		}
		t.Logf("%d sealed mappings at once", len(sums))
		if len(sums) < 20 {
			t.Errorf("only %d sealed mappings at once", len(sums))
		}
		if r.Code != 3 || !strings.Contains(r.Stderr, "no place for one more swap file") {
			t.Errorf("the next one: exit code %d, %s", r.Code, r.Stderr)
		}
		nothingLeftOf(t, image, name)
		if vmtest.ChecksumFile(t, image) != sealed {
			t.Error("the refused image changed")
		}
		// A place that becomes free is taken.
		expect(t, 0, "unmap", "i0")
		if vmtest.ChecksumFile(t, mapSealed(t, image, name)) != sum {
			t.Error("the device shows something else")
		}
		expect(t, 0, "unmap", name)
		break
	}
	for i, sum := range sums[1:] {
		if vmtest.ChecksumFile(t, fmt.Sprintf("/dev/mapper/i%d", i+1)) != sum {
			t.Errorf("i%d shows something else", i+1)
		}
	}
	expect(t, 0, "verify")
	expect(t, 0, "unmap", "--all")
	nothingLeft(t)
}

// nothingLeftOf fails the test when a refused map left anything of its own.
func nothingLeftOf(t testing.TB, image, name string) {
	t.Helper()
	unpinned(t, image)
	if _, err := os.Stat("/run/dmloop/" + name + ".mapping"); err == nil {
		t.Errorf("%s has a record", name)
	}
	if r := vmtest.Run(t, "dmsetup", "info", name); r.Code == 0 {
		t.Errorf("%s has a device", name)
	}
	if strings.Contains(vmtest.Must(t, "cat", "/proc/swaps"), image+" ") {
		t.Errorf("the kernel holds %s", image)
	}
}

// The host file system becomes read-only under a sealed mapping, as after an error.
// The mapping can be removed; what holds the image cannot be released before the file
// system is writable again, and is then, by the next command.
func TestSealedOnReadOnlyHost(t *testing.T) {
	eachSealedHost(t, func(t *testing.T, h *host) {
		image := h.image(t, "image.img", "1M")
		sum := fill(t, image, 1<<20, 1)
		expect(t, 0, "seal", image)
		dev := mapSealed(t, image, "vol")
		vmtest.Must(t, "sync")
		vmtest.Must(t, "sh", "-c", "echo u > /proc/sysrq-trigger") // in the background
		if h.kind.fstype == "btrfs" {                              // refuses even that while it has swap files
			time.Sleep(time.Second)
			if vmtest.Run(t, "mount", "-o", "remount,ro", h.dir).Code == 0 {
				t.Error("the host is read-only")
			}
			expect(t, 0, "verify", "vol")
			expect(t, 0, "unmap", "vol")
			nothingLeft(t, image)
			return
		}
		await(t, "the read-only host", 20*time.Second, func() bool {
			var st unix.Statfs_t
			return unix.Statfs(h.dir, &st) == nil && st.Flags&unix.ST_RDONLY != 0
		})
		expect(t, 0, "verify", "vol")
		if vmtest.ChecksumFile(t, dev) != sum {
			t.Error("the device shows something else")
		}
		sum = fill(t, dev, 1<<20, 2)
		for range 2 {
			r := expect(t, 1, "unmap", "vol")
			if !strings.Contains(r.Stderr, "read-only") || !strings.Contains(r.Stderr, "pins of "+image+" are not released") {
				t.Errorf("unmap: %s", r.Stderr)
			}
			if vmtest.Run(t, "dmsetup", "info", "vol").Code == 0 {
				t.Error("the device is still there")
			}
			if out := expect(t, 0, "list", "-n", "--raw", "-o", "STATE,REASON", "vol").Stdout; !strings.HasPrefix(out, "releasing ") || !strings.Contains(out, "read-only") {
				t.Errorf("list: %q", out)
			}
		}
		vmtest.Must(t, "mount", "-o", "remount,rw", h.dir)
		expect(t, 0, "unmap", "vol")
		nothingLeft(t, image)
		if strings.Contains(vmtest.Must(t, "cat", "/proc/swaps"), image) {
			t.Error("the kernel still holds the image")
		}
		expect(t, 0, "unseal", image)
		if vmtest.ChecksumFile(t, image) != sum {
			t.Error("what was written through the device is lost")
		}
	})
}

// A sparse image of 1 GiB is made full by provision, sealed and mapped: the device
// shows at every offset what the file had.
func TestLongSealedGiB(t *testing.T) {
	for _, kind := range sealedHosts {
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
	h := &host{kind: kind, dev: "/dev/mapper/host", dir: vmtest.Mount(t, "/dev/mapper/host")}
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
	expect(t, 0, "unseal", image)
	if vmtest.ChecksumFile(t, image) != sum {
		t.Error("the unsealed image is something else")
	}
	nothingLeft(t, image)
}

// An image in more than 5,000 pieces is sealed and mapped, and attacked with what was
// opened before, as far as it can be: who has it open is found out and the image is
// refused as it is. A descriptor that is older than the attack, and newer than the
// claim, is had by lifting the immutable flag for a moment.
func TestSealedManyExtents(t *testing.T) {
	const pieces, block = 5100, 4096
	for _, kind := range []hostKind{ext4Host, xfsHost, f2fsHost, btrfsHost} {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			image := h.fragmented(t, "image.img", pieces, block)
			between := vmtest.ChecksumFile(t, image+".neighbour")
			was := vmtest.ChecksumFile(t, image)
			h.refusedWhileOpen(t, image, was)
			expect(t, 0, "seal", image)
			h.refusedWhileOpen(t, image, vmtest.ChecksumFile(t, image))
			dev := mapSealed(t, image, "vol")
			rows := strings.Count(vmtest.Must(t, "dmsetup", "table", "vol"), "\n")
			if t.Logf("%d rows", rows); rows < 5000 && kind.fstype != "f2fs" { // newer ones put a file in order at swapon
				t.Errorf("%d rows", rows)
			}
			if vmtest.ChecksumFile(t, dev) != was {
				t.Fatal("the device shows something else")
			}
			h.attackByDescriptor(t, image)
			if got := expect(t, 0, "verify", "vol"); got.Stderr != "" {
				t.Errorf("verify: %s", got.Stderr)
			}
			takeAllSpace(h.path("victim"))
			was = fill(t, dev, pieces*block, 7)
			vmtest.Must(t, "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
			if vmtest.ChecksumFile(t, image+".neighbour") != between {
				t.Error("the blocks between changed")
			}
			if vmtest.ChecksumFile(t, dev) != was {
				t.Error("somebody else writes to the image's blocks")
			}
			os.Remove(h.path("victim"))
			expect(t, 0, "unmap", "vol")
			expect(t, 0, "unseal", image)
			if vmtest.ChecksumFile(t, image) != was {
				t.Error("unsealed to something else")
			}
			nothingLeft(t, image)
			h.check(t)
		})
	}
}

// fragmented makes an image in n pieces of a block each.
func (h *host) fragmented(t testing.TB, name string, n int, block int64) string {
	t.Helper()
	if h.kind.fstype == "btrfs" {
		vmtest.Must(t, "chattr", "+C", h.dir) // for the files that are made there
	}
	if h.kind.fstype != "f2fs" {
		return vmtest.FragmentedFile(t, h.dir, name, n, block)
	}
	// f2fs gives blocks in the order of writing, here one to each of two files in turn.
	var files [2]*os.File
	for i, p := range []string{h.path(name), h.path(name + ".neighbour")} {
		f, err := os.OpenFile(p, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_DIRECT, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	buf, err := unix.Mmap(-1, 0, int(block), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(buf)
	for i := range n {
		for k, f := range files {
			copy(buf, bytes.Repeat([]byte(fmt.Sprintf("%d-%d ", k, i)), int(block)))
			if _, err := f.WriteAt(buf, int64(i)*block); err != nil {
				t.Fatal(err)
			}
		}
	}
	vmtest.Must(t, "sync")
	if got := vmtest.CountExtents(t, h.path(name)); got < n-n/100 {
		t.Fatalf("%d extents, not about %d", got, n)
	}
	return h.path(name)
}

// refusedWhileOpen tries seal and map while somebody else has the image open, by a
// descriptor or by a shared mapping of memory only.
func (h *host) refusedWhileOpen(t *testing.T, image, sum string) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"by a descriptor", "by a mapping of memory"} {
		for _, args := range [][]string{{"seal", image}, {"map", "--no-guard", "--unsafe", image, "vol"}, {"unseal", image}} {
			code := 5
			if out := cli("check", image).Stdout; args[0] == "map" && (strings.Contains(out, "(unsealed)") || strings.Contains(out, "(unpinnable)")) {
				code = 3 // btrfs, and f2fs of newer kernels, map sealed images only
			}
			if r := dmloop(t, args...); r.Code != code || !strings.Contains(r.Stderr, "open-elsewhere") {
				t.Errorf("%s, open %s: exit code %d, %s", args[0], what, r.Code, r.Stderr)
			}
		}
		f.Close()
	}
	if err := unix.Munmap(m); err != nil {
		t.Fatal(err)
	}
	nothingLeftOf(t, image, "vol")
	if vmtest.ChecksumFile(t, image) != sum {
		t.Error("a refused image changed")
	}
}

// attackByDescriptor opens the mapped image for writing while the immutable flag is
// away, and lets loose on it what a descriptor can do.
func (h *host) attackByDescriptor(t *testing.T, image string) {
	t.Helper()
	vmtest.Must(t, "chattr", "-i", image)
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	vmtest.Must(t, "chattr", "+i", image)
	if _, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != unix.ETXTBSY {
		t.Errorf("a shared writable mapping: %v", err)
	}
	// A private one may be written to, and is made shared for a writer by no mprotect.
	m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err == nil {
		if err := unix.Mprotect(m, unix.PROT_READ|unix.PROT_WRITE); err == nil && stores(m) {
			t.Error("a store through a mapping of memory works")
		}
		unix.Munmap(m)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s works by a descriptor", what)
		}
	}
	_, err = f.WriteAt(make([]byte, 4096), 1<<20)
	refused("write", err)
	_, err = f.WriteAt(make([]byte, 4096), st.Size())
	refused("append", err)
	refused("truncate down", f.Truncate(1<<20))
	refused("truncate up, with the flag", os.Truncate(image, st.Size()+4096))
	for mode := range uint32(0x80) {
		refused(fmt.Sprintf("fallocate mode %#x", mode), unix.Fallocate(int(f.Fd()), mode, 1<<20, 1<<20))
	}
	donor, err := os.OpenFile(h.path("donor"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer donor.Close()
	if _, err := donor.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := donor.Sync(); err != nil {
		t.Fatal(err)
	}
	refused("clone from", unix.IoctlFileClone(int(donor.Fd()), int(f.Fd())))
	refused("clone onto", unix.IoctlFileClone(int(f.Fd()), int(donor.Fd())))
	_, err = unix.CopyFileRange(int(f.Fd()), nil, int(donor.Fd()), nil, 1<<20, 0)
	refused("copy_file_range from", err)
	_, err = unix.CopyFileRange(int(donor.Fd()), nil, int(f.Fd()), nil, 1<<20, 0)
	refused("copy_file_range onto", err)
}

// stores tries a store to memory and reports whether it worked.
func stores(m []byte) (ok bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	m[100]++
	return true
}

// sealedAttacks are those that a sealed image invites beside the others.
var sealedAttacks = []attack{
	{name: "btrfs defragment", fs: "btrfs", lifted: true, run: tool("btrfs", "filesystem", "defragment", "-f", "IMAGE")},
	{name: "btrfs balance", fs: "btrfs", lifted: true, run: tool("btrfs", "balance", "start", "--full-balance", "DIR")},
	{name: "btrfs scrub", fs: "btrfs", run: tool("sh", "-c", "btrfs scrub start -B DIR >/dev/null")}, // the summary speaks of errors
	{name: "btrfs snapshot", fs: "btrfs", lifted: true, run: tool("btrfs", "subvolume", "snapshot", "DIR", "DIR/snapshot")},
	{name: "btrfs resize", fs: "btrfs", lifted: true, run: tool("sh", "-c", "btrfs filesystem resize -16M DIR && btrfs filesystem resize max DIR")},
	{name: "swapoff", run: tool("swapoff", "IMAGE")},
	{name: "swapoff -a", run: tool("swapoff", "-a")},
}

// Every attack on images, against the grade kernel of a sealed image and with no guard
// to notice anything: each is refused, or it does no harm. After each of them all free
// space of the host is given to somebody else, and every block of the device written.
func TestSealedAttacksExt4(t *testing.T)     { attackSealed(t, ext4Host) }
func TestSealedAttacksBtrfs(t *testing.T)    { attackSealed(t, btrfsHost) }
func TestLongSealedAttacksXFS(t *testing.T)  { attackSealed(t, xfsHost) }
func TestQemuSealedAttacksXFS(t *testing.T)  { attackSealed(t, xfsHost) }
func TestLongSealedAttacksF2FS(t *testing.T) { attackSealed(t, f2fsHost) }
func TestQemuSealedAttacksF2FS(t *testing.T) { attackSealed(t, f2fsHost) }

func attackSealed(t *testing.T, kind hostKind) {
	h := newHost(t, kind, "shim")
	unchanged := h.neighbours(t, 3)
	if kind.fstype == "btrfs" {
		vmtest.Must(t, "chattr", "+C", h.dir) // a file shares blocks only with its like
	}
	kernel := vmtest.Kernel(t)
	var image string
	if kind.fstype == "f2fs" || kind.fstype == "btrfs" {
		image = h.image(t, "image", strconv.Itoa(imageSize))
	} else { // in pieces, so that a defragmenter has something to do
		image = vmtest.FragmentedFile(t, h.dir, "image", pieces, imageSize/pieces)
	}
	expect(t, 0, "seal", image)
	dev := mapSealed(t, image, "vol")
	table := vmtest.Must(t, "dmsetup", "table", "vol")
	sum := fill(t, dev, imageSize, 200)
	for _, a := range append(append([]attack(nil), attacks...), sealedAttacks...) {
		if a.older || a.hides {
			continue // map refuses it; the path is what the test goes by
		}
		if a.below || a.outside || strings.HasPrefix(a.name, "own device") || !listed(a.fs, kind.fstype) || !listed(a.only, kernel) {
			continue // no pin is against who has the devices themselves
		}
		for _, lift := range []string{"", "lifted: "} {
			if lift != "" && !a.lifted {
				continue
			}
			for i, name := range []string{"twin", "donor"} {
				vmtest.RandomFile(t, beside(image, name), imageSize, uint64(i))
			}
			out, err := command(t, "attack", lift+a.name, image).CombinedOutput()
			call := "done"
			if err != nil {
				call = "refused: " + strings.TrimSpace(string(out))
			}
			takeAllSpace(beside(image, "victim"))
			if vmtest.ChecksumFile(t, dev) != sum {
				t.Errorf("%s%s: %s; the device shows something else", lift, a.name, call)
			}
			sum = fill(t, dev, imageSize, byte(len(call)+len(a.name)))
			unchanged(t)
			if vmtest.ChecksumFile(t, dev) != sum {
				t.Errorf("%s%s: %s; somebody else writes to the device's blocks", lift, a.name, call)
			}
			state := "untouched"
			switch r := cli("verify", "vol"); {
			case strings.HasSuffix(a.name, "f2fs unpin"):
				// That lifts the pin on purpose, and f2fs may move the blocks from now on.
				if state = "the grade is gone"; r.Code != 4 || !strings.Contains(r.Stdout+r.Stderr, "f2fs-pin") {
					t.Errorf("verify after the pin was lifted: exit code %d, %s%s", r.Code, r.Stdout, r.Stderr)
				}
				expect(t, 0, "unmap", "vol")
				dev = mapSealed(t, image, "vol")
				table = vmtest.Must(t, "dmsetup", "table", "vol")
			case r.Code != 0:
				t.Errorf("%s%s: %s; verify: exit code %d, %s%s", lift, a.name, call, r.Code, r.Stdout, r.Stderr)
			}
			if vmtest.Run(t, "chattr", "+i", image).Code != 0 {
				t.Errorf("%s%s: the flag cannot be set again", lift, a.name)
			}
			t.Logf("SEALED|%s|%s|%s%s|%s|%s", kernel, kind.fstype, lift, a.name, call, state)
			if got := vmtest.Must(t, "dmsetup", "table", "vol"); got != table {
				t.Errorf("%s%s: the table changed", lift, a.name)
			}
			for _, name := range []string{"donor", "twin", "clone", "copy", "link", "victim"} {
				err := os.Remove(beside(image, name))
				if err != nil && !os.IsNotExist(err) && name != "link" { // a name of the image: it stays as long as the kernel holds it
					t.Errorf("%s: %v", name, err)
				}
			}
			if _, err := os.Stat(beside(image, "snapshot")); err == nil {
				t.Errorf("%s: a snapshot was made", a.name)
			}
		}
	}
	expect(t, 0, "unmap", "vol")
	if err := os.Remove(beside(image, "link")); err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	if r := cli("check", image); r.Code != 0 { // it was made longer, which the kernel allows
		t.Logf("check: %s", r.Stdout)
		expect(t, 0, "seal", image)
		expect(t, 0, "check", image)
	}
	expect(t, 0, "unseal", image)
	if vmtest.ChecksumFile(t, image) != sum {
		t.Error("unsealed to something else")
	}
	unchanged(t)
	h.check(t)
	nothingLeft(t, image)
}

// The power goes off while a sealed image is mapped: what the disk has then is a sealed
// image with a pin that nobody holds any more, and the next map takes it.
func TestSealedAfterPowerCut(t *testing.T) {
	eachSealedHost(t, func(t *testing.T, h *host) {
		image := h.image(t, "image.img", "4M")
		fill(t, image, 4<<20, 1)
		expect(t, 0, "seal", image)
		sum := fill(t, mapSealed(t, image, "vol"), 4<<20, 2)
		vmtest.Must(t, "sync")
		after := smallDisk(t, 1)
		vmtest.Must(t, "dd", "if="+h.dev, "of="+after, "bs=1M", "iflag=direct", "oflag=direct", "status=none")
		expect(t, 0, "unmap", "vol")
		vmtest.Umount(t, h.dir)
		if h.kind.fstype == "btrfs" { // takes the copy for the same device
			vmtest.Must(t, "wipefs", "-qa", h.dev)
			vmtest.Must(t, "btrfs", "device", "scan", "--forget")
		}
		expect(t, 0, "shim", after, "after")
		t.Cleanup(func() { vmtest.DmsetupRemove(t, "after") })
		next := &host{kind: h.kind, dev: "/dev/mapper/after", dir: vmtest.Mount(t, "/dev/mapper/after")}
		image = next.path("image.img")
		if flags := vmtest.Must(t, "lsattr", image); !strings.Contains(strings.Fields(flags)[0], "i") {
			t.Errorf("the flag is not on the disk: %s", flags)
		}
		expect(t, 0, "check", image)
		if vmtest.ChecksumFile(t, mapSealed(t, image, "vol")) != sum {
			t.Error("the device shows something else")
		}
		sum = fill(t, "/dev/mapper/vol", 4<<20, 3)
		expect(t, 0, "unmap", "vol")
		nothingLeft(t, image)
		expect(t, 0, "unseal", image)
		if vmtest.ChecksumFile(t, image) != sum {
			t.Error("the image is something else")
		}
		next.check(t)
	})
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
	expect(t, 0, "unseal", image)
	if vmtest.ChecksumFile(t, image) != sum {
		t.Error("unsealed to something else")
	}
	nothingLeft(t, image)
	h.check(t)
}

// A system that suspends to disk may choose the image's page of swap: map says so.
func TestQemuSealedHibernation(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "1M")
	expect(t, 0, "seal", image)
	if r := expect(t, 0, "map", "--no-guard", image, "vol"); strings.Contains(r.Stderr, "suspend to disk") {
		t.Errorf("warned without a reason: %s", r.Stderr)
	}
	expect(t, 0, "unmap", "vol")
	vmtest.Must(t, "sh", "-c", "lsblk -dno MAJ:MIN "+vmtest.Disk(t, 1)+" | tr -d ' ' > /sys/power/resume")
	if r := expect(t, 0, "map", "--no-guard", image, "vol"); !strings.Contains(r.Stderr, "suspend to disk") {
		t.Errorf("no warning: %q", r.Stderr)
	}
	expect(t, 0, "unmap", "vol")
}

// map and unmap of a sealed image are killed at every system call that changes
// something: what is left has a record, and the next command finishes or undoes it.
func TestLongSealedKilled(t *testing.T) {
	calls := append([]string{"swapon", "swapoff", "copy_file_range", "pwrite64"}, changing...)
	held := func(image string) bool {
		return strings.Contains(vmtest.Must(t, "cat", "/proc/swaps"), image+" ")
	}
	for _, kind := range []hostKind{ext4Host, xfsHost, f2fsHost, btrfsHost} {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			image := h.image(t, "image.img", "1M")
			sum := fill(t, image, 1<<20, 1)
			expect(t, 0, "seal", image)
			recorded := func(how string) {
				t.Helper()
				left := look(t, image)
				if (left.device || left.immutable || left.mark || held(image)) && !left.record {
					t.Errorf("%s: left without a record: %+v, held %v", how, left, held(image))
				}
			}
			released := func(how string) {
				t.Helper()
				if left := look(t, image); left != (remains{}) || held(image) {
					t.Errorf("%s: unmapped: %+v, held %v", how, left, held(image))
				}
			}
			args := []string{"map", "--no-guard", image}
			points(t, calls, func() []string { return args }, func(how string) {
				t.Helper()
				recorded(how)
				if r := cli(args...); r.Code != 0 && (r.Code != 5 || !strings.Contains(r.Stderr, "mapped already as image")) {
					t.Errorf("%s: the same again: exit code %d\n%s", how, r.Code, r.Stderr)
				}
				if left := look(t, image); left != (remains{true, true, true, true}) || !held(image) {
					t.Errorf("%s: mapped: %+v, held %v", how, left, held(image))
				}
				if r := cli("verify"); r.Code != 0 || vmtest.ChecksumFile(t, "/dev/mapper/image") != sum {
					t.Errorf("%s: verify: exit code %d\n%s", how, r.Code, r.Stdout)
				}
				if r := cli("unmap", image); r.Code != 0 {
					t.Errorf("%s: unmap: exit code %d\n%s", how, r.Code, r.Stderr)
				}
				released(how)
			})
			prepare := func() []string {
				t.Helper()
				expect(t, 0, args...)
				return []string{"unmap", image}
			}
			points(t, calls, prepare, func(how string) {
				t.Helper()
				recorded(how)
				if r := cli("unmap", "image"); r.Code != 0 && r.Code != 6 {
					t.Errorf("%s: the same again: exit code %d\n%s", how, r.Code, r.Stderr)
				}
				released(how)
			})
			expect(t, 0, "unseal", image)
			if vmtest.ChecksumFile(t, image) != sum {
				t.Error("the image changed")
			}
			nothingLeft(t, image)
		})
	}
}
