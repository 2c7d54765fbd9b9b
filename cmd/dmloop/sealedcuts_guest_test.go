//go:build vmtest

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/internal/helper"
	"dmloop/internal/vmtest"
)

// A machine that goes down gives up the claim and leaves the image mapped and immutable;
// the next boot takes the claim again, with the flag and without it; but not on f2fs,
// which would move the image.
func TestSealedClaimedAgain(t *testing.T) {
	eachMarkedHost(t, func(t *testing.T, h *host) {
		image := h.image(t, "image.img", "1M")
		sum := fill(t, image, 1<<20, 1)
		expect(t, 0, "seal", image)
		dev := mapSealed(t, image, "vol")
		was := extentsOf(t, image)
		for _, flag := range []string{"+i", "-i"} {
			expect(t, 0, "boot", "release", "vol")
			if left := look(t, image); left != (remains{true, true, true, true}) || strings.Contains(vmtest.Must(t, "cat", "/proc/swaps"), image) {
				t.Errorf("released: %+v", left)
			}
			vmtest.Must(t, "chattr", flag, image)
			if h.kind.fstype == "f2fs" { // would move it below the live device
				if r := expect(t, 3, "boot", "verify", "vol"); !strings.Contains(r.Stderr, "may move the image") {
					t.Errorf("boot verify: %s", r.Stderr)
				}
				if got := extentsOf(t, image); got != was {
					t.Errorf("the image lay at\n%s\nand lies at\n%s", was, got)
				}
				break
			}
			expect(t, 0, "boot", "verify", "vol")
			if grade := expect(t, 0, "list", "-n", "--raw", "-o", "GRADE,STATE", "vol").Stdout; grade != "kernel healthy\n" {
				t.Errorf("claimed again with the flag %s: %q", flag, grade)
			}
			if !strings.Contains(vmtest.Must(t, "cat", "/proc/swaps"), image+" ") || !look(t, image).immutable {
				t.Errorf("not pinned again, with the flag %s", flag)
			}
		}
		if vmtest.ChecksumFile(t, dev) != sum {
			t.Error("the device shows something else")
		}
		expect(t, 0, "unmap", "vol")
		nothingLeft(t, image)
	})
}

// What the guard's unit runs when it stops: nothing, unless the machine goes down, and
// then no image is let go of that could be moved below a device in use.
func TestSealedGoingDown(t *testing.T) {
	eachMarkedHost(t, func(t *testing.T, h *host) {
		image := h.image(t, "image.img", "1M")
		expect(t, 0, "seal", image)
		dev := mapSealed(t, image, "vol")
		program := fakeProgram(t, "systemctl")
		claimed := func(state string) bool {
			t.Helper()
			if err := os.WriteFile(program, []byte("#!/bin/sh\necho "+state+"\nexit 1\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			expect(t, 0, "boot", "release", "--going-down")
			if !look(t, image).immutable {
				t.Errorf("%s: not immutable", state)
			}
			return strings.Contains(vmtest.Must(t, "cat", "/proc/swaps"), image+" ")
		}
		if !claimed("degraded") {
			t.Error("let go of while the machine runs")
		}
		open, err := os.Open(dev)
		if err != nil {
			t.Fatal(err)
		}
		inUse := claimed("stopping")
		open.Close()
		if want := h.kind.fstype != "ext4"; inUse != want {
			t.Errorf("claimed below a device in use: %v, want %v", inUse, want)
		}
		if claimed("stopping") {
			t.Error("not let go of when the machine goes down")
		}
		expect(t, 0, "unmap", "vol")
		nothingLeft(t, image)
	})
}

// fakeProgram makes a program that dmloop finds under this name until the test ends, and
// returns its path for the test to write.
func fakeProgram(t testing.TB, name string) string {
	t.Helper()
	fake := filepath.Join(t.TempDir(), name)
	vmtest.Must(t, "install", "-m", "755", "/dev/null", fake)
	place, err := helper.Find(name)
	if err != nil { // it is not installed
		place = filepath.Join(helper.Folders[len(helper.Folders)-1], name)
		vmtest.Must(t, "install", "-D", "-m", "755", "/dev/null", place)
		t.Cleanup(func() { os.Remove(place) })
	}
	vmtest.Must(t, "mount", "--bind", fake, place)
	t.Cleanup(func() { vmtest.Must(t, "umount", place) })
	return fake
}

// extentsOf tells where a file lies, in the words of another program.
func extentsOf(t testing.TB, path string) string {
	t.Helper()
	return vmtest.Must(t, "filefrag", "-v", path)
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
		if repair := map[string][]string{"vfat": {"fsck.vfat", "-a"}, "exfat": {"fsck.exfat", "-y"}}[h.kind.fstype]; repair != nil {
			if r := vmtest.Run(t, append(repair, "/dev/mapper/after")...); r.Code > 1 { // marked as in use is all that it may be
				t.Errorf("%s: exit code %d\n%s%s", repair[0], r.Code, r.Stdout, r.Stderr)
			}
		}
		next := &host{kind: h.kind, dev: "/dev/mapper/after", dir: vmtest.Mount(t, "/dev/mapper/after", vmtest.MountOptions(h.kind.fstype)...)}
		image = next.path("image.img")
		if h.kind.bare() {
			if out := cli("check", "--pin=auto", image).Stdout; !strings.Contains(out, "(unsealed)") || !strings.Contains(out, "(unproven)") {
				t.Errorf("check without a word: %s", out)
			}
		} else if flags := vmtest.Must(t, "lsattr", image); !strings.Contains(strings.Fields(flags)[0], "i") {
			t.Errorf("the flag is not on the disk: %s", flags)
		}
		expect(t, 0, "check", image)
		if h.kind.fstype == "f2fs" { // a newer one takes it only when it is read anew
			if r := cli("map", "--no-guard", image, "vol"); r.Code == 0 {
				expect(t, 0, "unmap", "vol")
			} else if r.Code != 3 || !strings.Contains(r.Stderr, "drop_caches") {
				t.Errorf("map: exit code %d, %s", r.Code, r.Stderr)
			}
			nothingLeft(t, image)
			vmtest.Must(t, "sh", "-c", "sync; echo 2 > /proc/sys/vm/drop_caches")
		}
		if vmtest.ChecksumFile(t, mapSealed(t, image, "vol")) != sum {
			t.Error("the device shows something else")
		}
		sum = fill(t, "/dev/mapper/vol", 4<<20, 3)
		expect(t, 0, "unmap", "vol")
		nothingLeft(t, image)
		unsealed(t, image, sum)
		next.check(t)
	})
}

// map and unmap of a sealed image are killed at every system call that changes
// something: what is left has a record, and the next command finishes or undoes it.
func TestLongSealedKilled(t *testing.T) {
	calls := append([]string{"swapon", "swapoff", "copy_file_range", "pwrite64"}, changing...)
	held := func(image string) bool {
		return strings.Contains(vmtest.Must(t, "cat", "/proc/swaps"), image+" ")
	}
	for _, kind := range known(t, ext4Host, xfsHost, f2fsHost, btrfsHost, vfatHost, exfatHost, ntfsHost) {
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
			args, mapped := []string{"map", "--no-guard", image}, remains{true, true, true, true}
			if kind.bare() {
				args, mapped = append(args, "--pin=swap"), remains{device: true, record: true}
			}
			points(t, calls, func() []string { return args }, func(how string) {
				t.Helper()
				recorded(how)
				if r := cli(args...); r.Code != 0 && (r.Code != 5 || !strings.Contains(r.Stderr, "mapped already as image")) {
					t.Errorf("%s: the same again: exit code %d\n%s", how, r.Code, r.Stderr)
				}
				if left := look(t, image); left != mapped || !held(image) {
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
			unsealed(t, image, sum)
		})
	}
}

// An image that was pinned by hand and then mapped is let go of as well, or its host could
// not be unmounted; the pin by hand goes on afterwards.
func TestPinnedByHandGoingDown(t *testing.T) {
	disk, dir := vmtest.Disk(t, 0), t.TempDir()
	host := numbered(t, "host", 70, disk)
	vmtest.Mkfs(t, "ext4", host)
	mountAt(t, host, dir)
	image := filepath.Join(dir, "image.img")
	expect(t, 0, "create", image, "8M")
	expect(t, 0, "seal", image)
	expect(t, 0, "pin", image)
	mapSealed(t, image, "vol")
	claimed := func() bool {
		t.Helper()
		return strings.Contains(vmtest.Must(t, "cat", "/proc/swaps"), image+" ")
	}
	if !claimed() {
		t.Fatal("the kernel does not hold the image")
	}
	if r := vmtest.Run(t, "umount", dir); r.Code == 0 {
		t.Fatal("the host was unmounted below a claim")
	}
	expect(t, 0, "boot", "release", "vol")
	if claimed() || !look(t, image).immutable || !look(t, image).mark {
		t.Errorf("released: %+v, claimed: %v", look(t, image), claimed())
	}
	vmtest.Must(t, "umount", dir)
	mountAt(t, host, dir)
	expect(t, 0, "boot", "verify", "vol")
	if !claimed() {
		t.Error("not claimed again")
	}
	expect(t, 0, "unmap", "vol")
	if !claimed() || !look(t, image).immutable {
		t.Errorf("the pin by hand went with the mapping: %+v, claimed: %v", look(t, image), claimed())
	}
	expect(t, 0, "unpin", image)
	nothingLeft(t, image)
}
