//go:build vmtest

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

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
		// The same for an image that was made longer meanwhile.
		if err := onFile(image, os.O_WRONLY, func(f *os.File) error { _, err := f.WriteAt([]byte("secret!"), int64(page)); return err }); err != nil {
			t.Fatal(err)
		}
		mapSealed(t, image, "vol")
		vmtest.Must(t, "chattr", "-i", image)
		if r := vmtest.Run(t, "truncate", "-s", "+4096", image); r.Code != 0 && h.kind.fstype != "f2fs" { // a newer one wants whole sections
			t.Fatal(r.Stderr)
		}
		expect(t, 0, "unmap", "vol")
		if err := onFile(image, os.O_RDONLY, func(f *os.File) error { _, err := f.ReadAt(somebodys, int64(page)); return err }); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(somebodys, make([]byte, page)) {
			t.Error("the page of swap of a longer image is not wiped")
		}
		expect(t, 0, "unseal", image)
		if vmtest.ChecksumFile(t, image) != sum {
			t.Error("the image changed")
		}
	})
}

// An image that is pinned by hand, or made immutable by somebody else, is neither
// sealed nor unsealed, and the hint is a command that helps.
func TestSealedAndPinnedByHand(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "1M")
	sum := fill(t, image, 1<<20, 1)
	expect(t, 0, "seal", image)
	expect(t, 0, "pin", image)
	if r := expect(t, 5, "unseal", image); !strings.Contains(r.Stderr, "(active-swap)") || !strings.Contains(r.Stderr, "dmloop unpin "+image) {
		t.Errorf("unseal of a pinned image: %s", r.Stderr)
	}
	expect(t, 0, "unpin", image)
	vmtest.Must(t, "chattr", "+i", image)
	if r := expect(t, 7, "unseal", image); !strings.Contains(r.Stderr, "chattr -i "+image) {
		t.Errorf("unseal of an immutable image: %s", r.Stderr)
	}
	vmtest.Must(t, "chattr", "-i", image)
	expect(t, 0, "unseal", image)
	if vmtest.ChecksumFile(t, image) != sum {
		t.Error("the image changed")
	}
	nothingLeft(t, image)
}

// Where the kernel has no swap, or a sandbox forbids it, map says so and leaves nothing.
func TestSealedWithoutSwap(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "1M")
	expect(t, 0, "seal", image)
	sum := vmtest.ChecksumFile(t, image)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for errno, want := range map[string]struct {
		code int
		text string
	}{"ENOSYS": {8, "CONFIG_SWAP"}, "EPERM": {3, "unpinnable"}} {
		cmd := exec.Command("strace", "-f", "-o", "/dev/null", "-e", "inject=swapon,swapoff:error="+errno, self, "map", "--no-guard", image, "vol")
		cmd.Env = append(os.Environ(), roleVariable+"=dmloop")
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != want.code || !strings.Contains(string(out), want.text) {
			t.Errorf("%s: exit code %d, want %d and %q\n%s", errno, code, want.code, want.text, out)
		}
		nothingLeftOf(t, image, "vol")
		if vmtest.ChecksumFile(t, image) != sum {
			t.Errorf("%s: the refused image changed", errno)
		}
	}
	mapSealed(t, image, "vol")
	expect(t, 0, "unmap", "vol")
	nothingLeft(t, image)
}

// A machine that goes down gives up the claim and leaves the image mapped and immutable;
// the next boot takes the claim again, with the flag and without it; but not on f2fs,
// which would move the image.
func TestSealedClaimedAgain(t *testing.T) {
	eachSealedHost(t, func(t *testing.T, h *host) {
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
	eachSealedHost(t, func(t *testing.T, h *host) {
		image := h.image(t, "image.img", "1M")
		expect(t, 0, "seal", image)
		dev := mapSealed(t, image, "vol")
		bin := t.TempDir()
		t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
		claimed := func(state string) bool {
			t.Helper()
			if err := os.WriteFile(filepath.Join(bin, "systemctl"), []byte("#!/bin/sh\necho "+state+"\nexit 1\n"), 0o755); err != nil {
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

// extentsOf tells where a file lies, in the words of another program.
func extentsOf(t testing.TB, path string) string {
	t.Helper()
	return vmtest.Must(t, "filefrag", "-v", path)
}

// A guard that cannot have the claim again, for the kernel has given the place away,
// leaves the mapping what it is without it, and takes the claim when there is a place.
func TestFullSealedGuardWithoutPlace(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "64K")
	sum := fill(t, image, 64<<10, 1)
	expect(t, 0, "seal", image)
	t.Cleanup(func() { endGuard(t, "TERM") })
	mustDmloop(t, "map", image, "vol")
	var others []string
	t.Cleanup(func() { cli("unmap", "--all") })
	one := func() bool {
		t.Helper()
		name := fmt.Sprintf("i%d", len(others))
		other := h.image(t, name+".img", "64K")
		expect(t, 0, "seal", other)
		others = append(others, name)
		return cli("map", "--no-guard", other, name).Code == 0
	}
	for one() {
		if len(others) > 40 {
			t.Fatal("there is no end to it")
		}
	}
	taker := h.path("swap")
	vmtest.RandomFile(t, taker, 64<<10, 1)
	vmtest.Must(t, "chmod", "600", taker)
	vmtest.Must(t, "mkswap", taker)
	vmtest.Must(t, "sync")
	t.Cleanup(func() { vmtest.Run(t, "swapoff", taker) })
	guard := fmt.Sprint(guardPID())
	vmtest.Must(t, "kill", "-STOP", guard)
	r := vmtest.Run(t, "sh", "-c", "chattr -i "+image+" && swapoff "+image+" && swapon "+taker+" && chattr +i "+image)
	vmtest.Must(t, "kill", "-CONT", guard)
	if r.Code != 0 {
		t.Fatalf("the place is not given away: %s", r.Stderr)
	}
	state := func() string { return cli("list", "-n", "--raw", "-o", "STATE", "vol").Stdout }
	await(t, "the guard's finding", 20*time.Second, func() bool { return state() == "weakened\n" })
	time.Sleep(3 * time.Second) // checks follow
	if got, flags := state(), vmtest.Must(t, "lsattr", image); got != "weakened\n" || !strings.Contains(strings.Fields(flags)[0], "i") {
		t.Errorf("%q, flags %s\n%s", got, flags, guardLog())
	}
	if vmtest.ChecksumFile(t, "/dev/mapper/vol") != sum {
		t.Error("the device shows something else")
	}
	vmtest.Must(t, "swapoff", taker)
	await(t, "the claim", 90*time.Second, func() bool { return state() == "healthy\n" })
	if !strings.Contains(vmtest.Must(t, "cat", "/proc/swaps"), image+" ") {
		t.Error("not claimed again")
	}
	mustDmloop(t, "unmap", "vol")
	expect(t, 0, "unmap", "--all")
	nothingLeft(t, image)
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
		expect(t, 0, "unseal", image)
		if vmtest.ChecksumFile(t, image) != sum {
			t.Error("the image is something else")
		}
		next.check(t)
	})
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
