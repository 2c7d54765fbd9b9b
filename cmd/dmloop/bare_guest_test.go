//go:build vmtest

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"dmloop/extents"
	"dmloop/internal/fstype"
	"dmloop/internal/vmtest"
)

// bareHosts are the file systems on which no file can be marked.
var bareHosts = []hostKind{vfatHost, exfatHost, ntfsHost}

func eachBareHost(t *testing.T, test func(t *testing.T, h *host)) {
	for _, kind := range known(t, bareHosts...) {
		t.Run(kind.name, func(t *testing.T) { test(t, newHost(t, kind, "shim")) })
	}
}

// sealedImage makes an image of random bytes and seals it.
func (h *host) sealedImage(t testing.TB, name string, size int64) (image, sum string) {
	t.Helper()
	image = h.image(t, name, strconv.FormatInt(size, 10))
	sum = fill(t, image, size, 1)
	expect(t, 0, "seal", image)
	return image, sum
}

// Without the administrator's word a sealed image is a file that cannot be mapped, and is
// not sealed once more; nothing is written to it.
func TestBareWord(t *testing.T) {
	eachBareHost(t, func(t *testing.T, h *host) {
		plain := h.image(t, "plain.img", "1M")
		for _, rule := range []string{"(unsealed)", "(unproven)"} {
			if out := expect(t, 3, "check", "--pin=auto", plain).Stdout; !strings.Contains(out, rule) {
				t.Errorf("check of a plain image: %s", out)
			}
		}
		expect(t, 3, "map", "--pin=auto", plain)
		expect(t, 3, "map", "--pin=none", "--unsafe", "--no-guard", plain)
		image, sum := h.sealedImage(t, "image.img", 1<<20)
		before := vmtest.ChecksumFile(t, image)
		for _, args := range [][]string{{"check"}, {"map"}, {"seal"}, {"unseal"}, {"pin"}, {"table"}, {"map", "--seal"}} {
			r := expect(t, 3, append(append(args, "--pin=auto"), image)...)
			if !strings.Contains(r.Stdout+r.Stderr, "--pin=swap") {
				t.Errorf("%s without a word: %s%s", args[0], r.Stdout, r.Stderr)
			}
		}
		if r := expect(t, 3, "seal", "--adopt", image); !strings.Contains(r.Stderr, "--pin=swap") {
			t.Errorf("seal --adopt: %s", r.Stderr)
		}
		if vmtest.ChecksumFile(t, image) != before {
			t.Error("a refused image changed")
		}
		if out := expect(t, 0, "check", "--pin=swap", image).Stdout; !strings.Contains(out, "sealed") {
			t.Errorf("check: %s", out)
		}
		if r := expect(t, 0, "check", h.dir); !strings.Contains(r.Stdout, "once they are sealed") {
			t.Errorf("check of the folder: %s", r.Stdout)
		}
		mapSealed(t, image, "vol")
		if r := expect(t, 3, "boot", "save", "vol"); !strings.Contains(r.Stderr, "no boot could tell") {
			t.Errorf("boot save: %s", r.Stderr)
		}
		expect(t, 0, "unmap", "vol")
		unsealed(t, image, sum)
		h.check(t)
	})
}

// The claim by hand is ended by hand, and a mapping leaves it as it was.
func TestBarePinByHand(t *testing.T) {
	eachBareHost(t, func(t *testing.T, h *host) {
		image, sum := h.sealedImage(t, "image.img", 1<<20)
		held := func() bool { return strings.Contains(vmtest.Must(t, "cat", "/proc/swaps"), image+" ") }
		expect(t, 0, "pin", image)
		if !held() {
			t.Fatal("not held")
		}
		if os.Truncate(image, 4096) == nil || os.Remove(image) == nil || os.Rename(image, image+"2") == nil {
			t.Error("a pinned image was changed")
		}
		if vmtest.ChecksumFile(t, mapSealed(t, image, "vol")) != sum {
			t.Error("the device shows something else")
		}
		expect(t, 5, "unpin", image)
		expect(t, 0, "unmap", "vol")
		if !held() {
			t.Error("the pin by hand went with the mapping")
		}
		expect(t, 0, "unpin", image)
		expect(t, 0, "unpin", image)
		if held() {
			t.Error("still held")
		}
		// Swap of somebody else's is none of our business.
		swap := h.path("swapfile")
		vmtest.RandomFile(t, swap, 1<<20, 4)
		vmtest.Must(t, "mkswap", swap)
		vmtest.Must(t, "swapon", swap)
		r := cli("unpin", swap)
		if !strings.Contains(vmtest.Must(t, "cat", "/proc/swaps"), swap+" ") {
			t.Errorf("unpin ended somebody's swap: exit code %d, %s", r.Code, r.Stderr)
		}
		vmtest.Must(t, "swapoff", swap)
		unsealed(t, image, sum)
	})
}

// What others may open is not given to the kernel: on such hosts that is the mount's doing,
// and the message says so.
func TestBareMode(t *testing.T) {
	for _, kind := range known(t, bareHosts...) {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim", "-t", kind.fstype, "-o", "uid=1000,umask=022")
			image, _ := h.sealedImage(t, "image.img", 1<<20)
			way := "umask=077"
			if !fstype.Of(kind.fstype).MountMode { // of files that are made here owner and mode are kept
				way = "chmod 600"
				vmtest.Must(t, "chmod", "644", image)
			}
			r := cli("map", "--no-guard", "--gate=none", image, "vol")
			if r.Code != 3 || !strings.Contains(r.Stderr, way) || !strings.Contains(r.Stderr, h.dir) {
				t.Errorf("exit code %d, %s", r.Code, r.Stderr)
			}
			nothingLeft(t, image)
			vmtest.Must(t, "umount", h.dir)
			h.options = vmtest.MountOptions(kind.fstype)
			h.mount(t)
			if way != "umask=077" {
				vmtest.Must(t, "chmod", "600", image)
			}
			mapSealed(t, image, "vol")
			expect(t, 0, "unmap", "vol")
		})
	}
}

// A file that was made longer and never written has blocks with what was there before. It
// is refused until it is sealed, and the device shows then what the file read as.
func TestQemuBareUnwritten(t *testing.T) { // FAT, which is all that User Mode Linux has, fills such files
	eachBareHost(t, func(t *testing.T, h *host) {
		const size = 24 << 20
		for i := range 9 { // old data everywhere
			vmtest.RandomFile(t, h.path(fmt.Sprintf("old%d", i)), 30<<20, uint64(i))
		}
		vmtest.Must(t, "sh", "-c", "rm "+h.path("old*")+"; sync")
		h.remount(t)
		image := h.path("image.img")
		vmtest.Must(t, "truncate", "-s", fmt.Sprint(size), image)
		vmtest.Must(t, "chmod", "600", image) // which only NTFS keeps
		vmtest.Must(t, "sync")
		sum := vmtest.ChecksumFile(t, image)
		stale := h.holdsOldData(t, image)
		t.Logf("old data below the file: %v", stale)
		if kernel := vmtest.Kernel(t); h.kind.fstype == "exfat" && kernel != "6.1" && !stale {
			t.Error("no old data below it: the test shows nothing")
		}
		for _, rule := range []string{"(unsealed)", "(unproven)"} {
			if out := expect(t, 3, "check", "--pin=auto", image).Stdout; h.kind.fstype != "ntfs3" && !strings.Contains(out, rule) {
				t.Errorf("check: %s", out)
			}
		}
		if h.kind.fstype == "ntfs3" {
			expect(t, 0, "provision", image) // it may be sparse
		}
		expect(t, 0, "seal", image)
		dev := mapSealed(t, image, "vol")
		vmtest.Must(t, "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
		if vmtest.ChecksumFile(t, dev) != sum {
			t.Error("the device shows something else than the file")
		}
		expect(t, 0, "unmap", "vol")
		unsealed(t, image, sum)
		h.check(t)
	})
}

// holdsOldData reports whether the blocks below a file of zeros hold something else.
func (h *host) holdsOldData(t testing.TB, image string) bool {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := extents.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range l.Clip().Extents {
		out, err := exec.Command("dd", "if="+h.dev, "iflag=direct,skip_bytes,count_bytes", "bs=1M", "status=none",
			fmt.Sprintf("skip=%d", e.Physical), fmt.Sprintf("count=%d", e.Length)).Output()
		if err != nil {
			t.Fatal(err)
		}
		if len(bytes.Trim(out, "\x00")) > 0 {
			return true
		}
	}
	return false
}

// An image that was sealed on another file system says nothing of what was written here.
func TestBareCopy(t *testing.T) {
	vmtest.RequireGuest(t)
	from := vmtest.Disk(t, 1)
	vmtest.Mkfs(t, "ext4", from)
	elsewhere := filepath.Join(vmtest.Mount(t, from), "image.img")
	expect(t, 0, "create", elsewhere, "4M")
	sum := fill(t, elsewhere, 4<<20, 3)
	expect(t, 0, "seal", elsewhere)
	eachBareHost(t, func(t *testing.T, h *host) {
		image := h.path("image.img")
		vmtest.Must(t, "cp", elsewhere, image)
		if r := expect(t, 3, "map", "--pin=swap", "--no-guard", image); !strings.Contains(r.Stderr, "(unproven)") || !strings.Contains(r.Stderr, "dmloop seal --pin=swap") {
			t.Errorf("map of a copy: %s", r.Stderr)
		}
		expect(t, 0, "seal", "--pin=swap", image)
		if vmtest.ChecksumFile(t, mapSealed(t, image, "vol")) != sum {
			t.Error("the device shows something else")
		}
		expect(t, 0, "unmap", "vol")
		unsealed(t, image, sum)
	})
}

// create makes the image under another name, which a killed one leaves and the next takes
// over; what is too long for FAT is refused at once.
func TestBareCreate(t *testing.T) {
	eachBareHost(t, func(t *testing.T, h *host) {
		image, beside := h.path("image.img"), h.path(".image.img.dmloop-new")
		if !killAt(t, "pwrite64", 2, "create", image, "12M") {
			t.Fatal("not killed")
		}
		if _, err := os.Stat(image); err == nil {
			t.Error("a killed create left the image")
		}
		if _, err := os.Stat(beside); err != nil {
			t.Error(err)
		}
		expect(t, 0, "create", image, "1M")
		if _, err := os.Stat(beside); err == nil {
			t.Error("it is still there")
		}
		expect(t, 5, "create", image, "1M")
		if out := vmtest.Must(t, "stat", "-c", "%s", image); out != "1048576\n" {
			t.Errorf("%s", out)
		}
		expect(t, 1, "create", h.path("large.img"), "3G") // no space
		if h.kind.fstype == "vfat" {
			if r := cli("create", h.path("large.img"), "4G"); r.Code != 3 || !strings.Contains(r.Stderr, "exFAT") {
				t.Errorf("exit code %d, %s", r.Code, r.Stderr)
			}
		}
		if rest, _ := filepath.Glob(h.path("*large*")); len(rest) > 0 {
			t.Errorf("left: %q", rest)
		}
		h.check(t)
	})
}

// The guard watches an image whose inode number is made up: memory that is wanted back does
// not make another file of it, and a guard that is started anew finds it.
func TestBareGuard(t *testing.T) {
	eachBareHost(t, func(t *testing.T, h *host) {
		image, sum := h.sealedImage(t, "image.img", 4<<20)
		mustDmloop(t, "map", "--pin=swap", image, "vol")
		t.Cleanup(func() { endGuard(t, "TERM") })
		state := func(when string) {
			t.Helper()
			vmtest.Must(t, "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches; ls -lR "+h.dir)
			if got := mustDmloop(t, "list", "-n", "--raw", "-o", "GRADE,STATE,GUARD,PIN", "vol"); got != "kernel healthy 1 swap\n" {
				t.Errorf("%s: %q", when, got)
			}
			mustDmloop(t, "verify", "vol")
		}
		state("mapped")
		time.Sleep(3 * time.Second)
		state("later")
		endGuard(t, "KILL")
		mustDmloop(t, "list")
		if r := dmloop(t, "map", "--pin=swap", image, "again"); r.Code != 5 || !strings.Contains(r.Stderr, "mapped already as vol") {
			t.Errorf("map again: exit code %d, %s", r.Code, r.Stderr)
		}
		startGuard(t)
		await(t, "the new guard", 20*time.Second, func() bool {
			return mustDmloop(t, "list", "-n", "--raw", "-o", "GRADE,STATE,GUARD,PIN", "vol") == "kernel healthy 1 swap\n"
		})
		state("adopted")
		if vmtest.ChecksumFile(t, "/dev/mapper/vol") != sum {
			t.Error("the device shows something else")
		}
		mustDmloop(t, "unmap", image)
		unsealed(t, image, sum)
		h.check(t)
	})
}

// Who ends the claim ends all that pins the image: verify and the guard say so, the mapping
// is stopped, and unmap leaves nothing.
func TestBareSwapoff(t *testing.T) {
	eachBareHost(t, func(t *testing.T, h *host) {
		image, sum := h.sealedImage(t, "image.img", 4<<20)
		for _, guarded := range []bool{false, true} {
			args := []string{"map", "--pin=swap", "--gate=none", image, "vol"}
			if !guarded {
				args = append(args, "--no-guard")
			}
			mustDmloop(t, args...)
			t.Cleanup(func() { cli("unmap", "vol"); endGuard(t, "TERM") })
			vmtest.Must(t, "swapoff", image)
			vmtest.Must(t, "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
			if !guarded {
				if r := cli("verify", "vol"); r.Code != 4 || !strings.Contains(r.Stdout+r.Stderr, "swap") {
					t.Errorf("verify: exit code %d, %s%s", r.Code, r.Stdout, r.Stderr)
				}
			} else { // the only pin is gone: it is stopped
				await(t, "the mapping's end", 20*time.Second, func() bool {
					return strings.HasPrefix(cli("list", "-n", "--raw", "-o", "STATE", "vol").Stdout, "failed")
				})
				if out := cli("status", "vol").Stdout; !strings.Contains(out, "swap") {
					t.Errorf("status: %s", out)
				}
				if r := vmtest.Run(t, "dd", "if=/dev/mapper/vol", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"); r.Code == 0 {
					t.Error("a stopped mapping is read from")
				}
			}
			mustDmloop(t, "unmap", "vol")
			endGuard(t, "TERM")
			nothingLeft(t, image)
		}
		unsealed(t, image, sum)
		h.check(t)
	})
}

// The kernel lets root make even an active swap file longer: the image's blocks stay where
// they are, and what was added is cut off again.
func TestBareLonger(t *testing.T) {
	eachBareHost(t, func(t *testing.T, h *host) {
		image, sum := h.sealedImage(t, "image.img", 2<<20)
		dev := mapSealed(t, image, "vol", "--gate=none")
		if r := vmtest.Run(t, "truncate", "-s", "+1M", image); r.Code != 0 {
			t.Logf("refused: %s", r.Stderr)
		} else if r := cli("verify", "vol"); r.Code != 4 || !strings.Contains(r.Stdout+r.Stderr, "when it was mapped") {
			t.Errorf("verify: exit code %d, %s%s", r.Code, r.Stdout, r.Stderr)
		}
		takeAllSpace(h.path("victim"))
		sum2 := fill(t, dev, 2<<20, 9)
		vmtest.Must(t, "rm", "-f", h.path("victim"))
		if sum2 == sum || vmtest.ChecksumFile(t, dev) != sum2 {
			t.Error("somebody else writes to the image's blocks")
		}
		expect(t, 0, "unmap", "vol")
		expect(t, 0, "seal", image)
		unsealed(t, image, sum2)
		h.check(t)
	})
}

// By the mount helper and by dmlooptab, with pin=swap.
func TestBareMountAndTab(t *testing.T) {
	mountHelpers(t)
	eachBareHost(t, func(t *testing.T, h *host) {
		image, _ := h.sealedImage(t, "data.img", 8<<20)
		mnt := t.TempDir()
		mustDmloop(t, "map", "--no-guard", "--pin=swap", image)
		vmtest.Must(t, "mkfs.ext4", "-q", "/dev/mapper/data")
		mustDmloop(t, "unmap", "data")
		for range 3 {
			vmtest.Must(t, "mount", "-t", "dmloop", "-o", "pin=swap", image, mnt)
			vmtest.Must(t, "sh", "-c", "date >>"+mnt+"/x")
			vmtest.Must(t, "umount", mnt)
		}
		if r := vmtest.Run(t, "mount", "-t", "dmloop", image, mnt); r.Code == 0 {
			t.Error("mounted without a word")
			vmtest.Must(t, "umount", mnt)
		}
		tab := filepath.Join(t.TempDir(), "dmlooptab")
		if err := os.WriteFile(tab, []byte("data "+image+" - pin=swap\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		mustDmloop(t, "activate", "--tab", tab, "data")
		vmtest.Must(t, "e2fsck", "-fn", "/dev/mapper/data")
		mustDmloop(t, "deactivate", "--tab", tab, "data")
		endGuard(t, "TERM")
		nothingLeft(t, image)
		h.check(t)
	})
}

// Files of NTFS that have no blocks of their own, or not as they are read, are refused by name.
func TestQemuNTFSFiles(t *testing.T) {
	for _, kind := range known(t, ntfsHost) {
		h := newHost(t, kind, "shim")
		for _, c := range []struct{ name, attribute, rule string }{
			{"resident", "", "(inline)"},
			{"sparse", "0x00020000", "(hole)"},           // FILE_ATTRIBUTE_SPARSE_FILE
			{"compressed", "0x00080000", "(compressed)"}, // FILE_ATTRIBUTE_COMPRESSED
		} {
			path := h.path(c.name)
			vmtest.Must(t, "touch", path)
			if c.attribute == "" {
				vmtest.Must(t, "sh", "-c", "head -c 512 /dev/urandom >"+path)
			} else {
				vmtest.Must(t, "setfattr", "-n", "system.ntfs_attrib", "-v", c.attribute, path)
				vmtest.Must(t, "truncate", "-s", "1M", path)
				vmtest.Must(t, "sh", "-c", "yes dmloop | head -c 300000 | dd of="+path+" conv=notrunc status=none")
			}
			vmtest.Must(t, "chmod", "600", path)
			vmtest.Must(t, "sync")
			before := vmtest.ChecksumFile(t, path)
			for _, verb := range []string{"check", "seal", "map"} {
				if r := cli(verb, path); r.Code != 3 || verb == "check" && !strings.Contains(r.Stdout, c.rule) {
					t.Errorf("%s of a %s file: exit code %d, %s%s", verb, c.name, r.Code, r.Stdout, r.Stderr)
				}
			}
			if vmtest.ChecksumFile(t, path) != before {
				t.Errorf("the %s file changed", c.name)
			}
		}
	}
}

// The stick is pulled out while an image on it is mapped: requests fail, the guard says
// why, unmap cleans up, and the stick that is put back is mapped again with what it held.
func TestQemuBareUnplugged(t *testing.T) {
	for _, kind := range known(t, bareHosts...) {
		t.Run(kind.name, func(t *testing.T) {
			disk := scsiDisk(t)
			h := &host{kind: kind, dev: "/dev/mapper/host"}
			plug := func() {
				t.Helper()
				expect(t, 0, "shim", "/dev/"+disk, "host")
				h.dir = vmtest.Mount(t, h.dev, vmtest.MountOptions(kind.fstype)...)
			}
			expect(t, 0, "shim", "/dev/"+disk, "host")
			t.Cleanup(func() { vmtest.Run(t, "dmsetup", "remove", "host") })
			vmtest.Mkfs(t, kind.fstype, h.dev, kind.small()...)
			h.dir = vmtest.Mount(t, h.dev, vmtest.MountOptions(kind.fstype)...)
			vmtest.RandomFile(t, h.path("neighbour"), 2<<20, 9)
			neighbour := vmtest.ChecksumFile(t, h.path("neighbour"))
			image, _ := h.sealedImage(t, "image.img", 8<<20)
			mustDmloop(t, "map", "--pin=swap", image, "vol")
			t.Cleanup(func() {
				if r := dmloop(t, "unmap", "vol"); r.Code != 0 && r.Code != 6 {
					dmloop(t, "unmap", "--forget", "vol")
				}
				endGuard(t, "TERM")
			})
			sum := fill(t, "/dev/mapper/vol", 8<<20, 5)
			vmtest.Must(t, "sync")
			if err := os.WriteFile("/sys/block/"+disk+"/device/delete", []byte("1"), 0o200); err != nil {
				t.Fatal(err)
			}
			await(t, "the tear-down", 30*time.Second, func() bool { return !strings.Contains(vmtest.Must(t, "dmsetup", "table", "vol"), "linear") })
			await(t, "the record", 30*time.Second, func() bool { return state(t, "STATE") == "failed" })
			if reason := state(t, "REASON"); !strings.Contains(reason, "is gone") {
				t.Errorf("the guard says %s", reason)
			}
			if r := vmtest.Run(t, "dd", "if=/dev/mapper/vol", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"); r.Code == 0 {
				t.Error("a pulled disk is read from")
			}
			mustDmloop(t, "unmap", "vol")
			if swaps := vmtest.Must(t, "cat", "/proc/swaps"); strings.Contains(swaps, image) {
				t.Errorf("still held: %s", swaps)
			}
			if list := mustDmloop(t, "list", "-n"); list != "" {
				t.Errorf("still listed: %s", list)
			}
			vmtest.Must(t, "umount", h.dir)
			vmtest.Must(t, "dmsetup", "remove", "host")
			old := disk
			vmtest.Must(t, "sh", "-c", "echo '- - -' > /sys/class/scsi_host/$(ls /sys/class/scsi_host | sort -V | tail -n 1)/scan")
			await(t, "the disk again", 30*time.Second, func() bool {
				now, _ := filepath.Glob("/sys/block/sd*")
				for _, path := range now {
					disk = filepath.Base(path)
				}
				return len(now) > 0
			})
			t.Logf("%s is %s now", old, disk)
			plug()
			image = h.path("image.img")
			if vmtest.ChecksumFile(t, h.path("neighbour")) != neighbour {
				t.Error("another file changed")
			}
			if vmtest.ChecksumFile(t, mapSealed(t, image, "vol")) != sum {
				t.Error("the device shows something else than before")
			}
			expect(t, 0, "unmap", "vol")
			unsealed(t, image, sum)
			vmtest.Must(t, "umount", h.dir)
		})
	}
}

// small are the options of mkfs for a file system of 64 MiB.
func (k hostKind) small() []string {
	if k.fstype == "vfat" {
		return []string{"-F", "32", "-s", "1"}
	}
	return k.mkfs
}
