//go:build vmtest

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

// A sealed image that says what it is and is used as plain swap keeps its payload.
func TestSealedUsedAsSwap(t *testing.T) {
	eachMarkedHost(t, func(t *testing.T, h *host) {
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
		unsealed(t, image, sum)
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
	unsealed(t, image, sum)
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

// A mapping of the initramfs for which the kernel does not take the image keeps the
// pins that it has: what lies on it, the root file system perhaps, goes on.
func TestSealedRepinnedWithoutClaim(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "1M")
	sum := fill(t, image, 1<<20, 1)
	expect(t, 0, "seal", image)
	dev := mapSealed(t, image, "vol")
	// As after a boot: the flag and the mark are there, the claim is not.
	vmtest.Must(t, "sh", "-c", "chattr -i "+image+" && swapoff "+image+" && chattr +i "+image)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("strace", "-f", "-o", "/dev/null", "-e", "inject=swapon:error=EPERM", self, "boot", "verify", "vol")
	cmd.Env = append(os.Environ(), roleVariable+"=dmloop")
	if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() == 0 || !strings.Contains(string(out), "unpinnable") {
		t.Errorf("boot verify: exit code %d\n%s", cmd.ProcessState.ExitCode(), out)
	}
	if got := expect(t, 0, "list", "-n", "--raw", "-o", "PIN,GRADE,STATE", "vol").Stdout; got != "immutable kernel weakened\n" {
		t.Errorf("%q after a claim that was refused", got)
	}
	expect(t, 0, "boot", "verify", "vol")
	if got := expect(t, 0, "list", "-n", "--raw", "-o", "PIN,GRADE,STATE", "vol").Stdout; got != "immutable+swap kernel healthy\n" {
		t.Errorf("%q after a claim that was had", got)
	}
	if vmtest.ChecksumFile(t, dev) != sum {
		t.Error("the device shows something else")
	}
	expect(t, 0, "unmap", "vol")
	nothingLeft(t, image)
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
		if r.Code != 3 || !strings.Contains(r.Stderr, "no room for another swap file") {
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
		unsealed(t, image, sum)
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
