//go:build vmtest

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

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
			unsealed(t, image, was)
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
	t.Setenv("DMLOOP_LEASE_PATIENCE", "200ms") // those who have it open stay
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
			if out := cli("check", image).Stdout; args[0] == "map" && (strings.Contains(out, "(unsealed)") || strings.Contains(out, "(unpinnable)") && !lacksGate(t, h.kind)) {
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

// Nobody can open an image for writing while it is being sealed or unsealed: what he
// wrote to the first pages would be lost.
func TestSealKeepsOthersOut(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "1M")
	sum := fill(t, image, 1<<20, 1)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"seal", "unseal"} {
		cmd := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:delay_enter=1000000:when=1", self, verb, image)
		cmd.Env = append(os.Environ(), roleVariable+"=dmloop")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, "the lease of "+verb, 20*time.Second, func() bool {
			locks, err := os.ReadFile("/proc/locks")
			return err == nil && strings.Contains(string(locks), "LEASE")
		})
		if f, err := os.OpenFile(image, os.O_RDWR|unix.O_NONBLOCK, 0); !errors.Is(err, unix.EWOULDBLOCK) {
			t.Errorf("%s: an open for writing: %v, %v", verb, f, err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", verb, err)
		}
	}
	if vmtest.ChecksumFile(t, image) != sum {
		t.Error("the image changed")
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
func TestSealedAttacksFAT(t *testing.T)      { attackSealed(t, vfatHost) }

// User Mode Linux has neither.
func TestQemuSealedAttacksExFAT(t *testing.T) {
	for _, kind := range known(t, exfatHost, ntfsHost) {
		t.Run(kind.name, func(t *testing.T) { attackSealed(t, kind) })
	}
}

func attackSealed(t *testing.T, kind hostKind) {
	h := newHost(t, kind, "shim")
	unchanged := h.neighbours(t, 3)
	if kind.fstype == "btrfs" {
		vmtest.Must(t, "chattr", "+C", h.dir) // a file shares blocks only with its like
	}
	kernel := vmtest.Kernel(t)
	var image string
	if kind.fstype == "f2fs" || kind.fstype == "btrfs" || kind.bare() {
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
			if lift != "" && (!a.lifted || kind.bare()) { // there is no flag
				continue
			}
			for i, name := range []string{"twin", "donor"} {
				vmtest.RandomFile(t, beside(image, name), imageSize, uint64(i))
			}
			cmd := command(t, "attack", lift+a.name, image)
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() > 1 {
				t.Errorf("%s%s was not tried: %s", lift, a.name, out)
			}
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
			case kind.bare() && strings.HasPrefix(a.name, "swapoff"):
				// No flag is in the way of that: it lifts the only pin on purpose.
				if state = "the grade is gone"; r.Code != 4 || !strings.Contains(r.Stdout+r.Stderr, "swap") {
					t.Errorf("verify after the claim was ended: exit code %d, %s%s", r.Code, r.Stdout, r.Stderr)
				}
				expect(t, 0, "unmap", "vol")
				dev = mapSealed(t, image, "vol")
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
			if !kind.bare() && vmtest.Run(t, "chattr", "+i", image).Code != 0 {
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
	unsealed(t, image, sum)
	unchanged(t)
	h.check(t)
}

// On xfs with the feature for it, blocks of a sealed image are exchanged with nobody's,
// and those of a plain file are.
func TestQemuSealedExchangeRange(t *testing.T) {
	h := newHost(t, xfsHost, "shim")
	exchanges := vmtest.Kernel(t) != "6.1"
	if exchanges {
		vmtest.Umount(t, h.dir)
		if err := onFile(h.dev, os.O_RDWR, addExchange); err != nil {
			t.Fatal(err)
		}
		h.dir = vmtest.Mount(t, h.dev)
	}
	image, plain, donor := h.image(t, "image.img", "4M"), h.path("plain"), h.path("donor")
	for i, path := range []string{plain, donor} {
		vmtest.RandomFile(t, path, 4<<20, uint64(i))
	}
	before := vmtest.ChecksumFile(t, plain)
	err := exchangeRange(plain, donor)
	if changed := vmtest.ChecksumFile(t, plain) != before; changed != exchanges || exchanges != (err == nil) {
		t.Fatalf("plain files: %v, changed %v", err, changed)
	}
	sum := fill(t, image, 4<<20, 2)
	expect(t, 0, "seal", image)
	dev := mapSealed(t, image, "vol")
	vmtest.Must(t, "chattr", "-i", image)
	for _, files := range [][2]string{{image, donor}, {donor, image}} {
		if err := exchangeRange(files[0], files[1]); err == nil || exchanges && !errors.Is(err, unix.ETXTBSY) {
			t.Errorf("blocks are exchanged: %v", err)
		}
	}
	vmtest.Must(t, "chattr", "+i", image)
	expect(t, 0, "verify", "vol")
	if vmtest.ChecksumFile(t, dev) != sum {
		t.Error("the device shows something else")
	}
	expect(t, 0, "unmap", "vol")
	nothingLeft(t, image)
}

// addExchange sets the feature in the superblock of an unmounted xfs, as mkfs.xfs -i
// exchange=1 of xfsprogs 6.10 does: struct xfs_dsb in fs/xfs/libxfs/xfs_format.h, with
// sb_features_incompat at 216 and the CRC-32C of the sector at 224.
func addExchange(f *os.File) error {
	const exchange = 1 << 6 // XFS_SB_FEAT_INCOMPAT_EXCHRANGE
	sb := make([]byte, 512)
	if _, err := f.ReadAt(sb, 0); err != nil {
		return err
	}
	if n := binary.BigEndian.Uint16(sb[102:]); n != 512 {
		return fmt.Errorf("sectors of %d bytes", n)
	}
	binary.BigEndian.PutUint32(sb[216:], binary.BigEndian.Uint32(sb[216:])|exchange)
	clear(sb[224:228])
	binary.LittleEndian.PutUint32(sb[224:], crc32.Checksum(sb, crc32.MakeTable(crc32.Castagnoli)))
	if _, err := f.WriteAt(sb, 0); err != nil {
		return err
	}
	return f.Sync()
}
