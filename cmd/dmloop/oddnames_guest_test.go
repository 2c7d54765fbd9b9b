//go:build vmtest

package main

import (
	"strings"
	"testing"

	"dmloop/internal/vmtest"
)

// oddNames are names of images that the kernel shows in /proc/swaps and mountinfo: with
// blanks that are none to it, with what it escapes, and with its own mark of a deleted
// file at the end.
var oddNames = []string{"a\u00a0b.img", "a\u0085b", "\u3000", "a b\tc", "a\nb", `a\040b`, "x\r", "\xa0\xff", "x (deleted)"}

// While images with odd names are active as swap, others are checked, mapped and
// released as always; and each of them is itself.
func TestOddNamesInTheListOfSwapAreas(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	plain := h.image(t, "plain.img", "1M")
	for _, name := range oddNames {
		image := h.image(t, name, "1M")
		sum := fill(t, image, 1<<20, 1)
		expect(t, 0, "seal", image)
		dev := mapSealed(t, image, "odd")
		if vmtest.ChecksumFile(t, dev) != sum {
			t.Errorf("%q: the device shows something else", name)
		}
		if c, _ := checkedAs(t, plain); !c.Mappable {
			t.Errorf("beside %q: %+v", name, c)
		}
		expect(t, 0, "map", "--no-guard", plain, "plain")
		expect(t, 0, "unmap", "plain")
		expect(t, 0, "unmap", "odd")
		// By hand, as a stranger's swap file: it is found under its own name.
		vmtest.Must(t, "chmod", "600", image)
		vmtest.Must(t, "swapon", image)
		if r := cli("check", image); r.Code != 3 || !strings.Contains(r.Stdout, "(active-swap)") {
			t.Errorf("%q as swap: exit code %d, %s", name, r.Code, r.Stdout)
		}
		expect(t, 0, "check", plain)
		vmtest.Must(t, "swapoff", image)
		unsealed(t, image, sum)
		vmtest.Must(t, "rm", image)
	}
	h.check(t)
}

// A user's swap file whose name ends as the kernel's mark does, and a symbolic link of
// the name without it, make nobody else's image swap.
func TestNameThatEndsAsDeleted(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	chosen := h.image(t, "chosen.img", "1M")
	dir := h.path("user")
	vmtest.Must(t, "mkdir", dir)
	swap := h.image(t, "user/x (deleted)", "1M")
	vmtest.Must(t, "sh", "-c", `chmod 600 "$0"; mkswap -q "$0"; swapon "$0"; ln -s ../chosen.img "${0% (deleted)}"`, swap)
	t.Cleanup(func() { vmtest.Run(t, "swapoff", swap) })
	if list := vmtest.Must(t, "cat", "/proc/swaps"); !strings.Contains(list, `/x\040(deleted) `) {
		t.Fatalf("the list is\n%s", list)
	}
	if c, _ := checkedAs(t, chosen); !c.Mappable {
		t.Errorf("%+v", c)
	}
	expect(t, 0, "map", "--no-guard", chosen, "chosen")
	expect(t, 0, "unmap", "chosen")
	if r := cli("check", swap); !strings.Contains(r.Stdout, "(active-swap)") {
		t.Errorf("the swap file itself: %s", r.Stdout)
	}
}

// Mounts with odd names and without a source do not keep images from being found.
func TestOddNamesInMountinfo(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "1M")
	for i, name := range append(oddNames, "-", "#") {
		dir := h.path("m" + name)
		vmtest.Must(t, "mkdir", "-p", dir)
		source := name
		if i%3 == 0 {
			source = ""
		}
		vmtest.Must(t, "mount", "-i", "-t", "tmpfs", "--source", source, dir)
		t.Cleanup(func() { vmtest.Must(t, "umount", dir) })
	}
	inside := h.path("m" + oddNames[0])
	vmtest.Must(t, "mount", "--bind", h.dir, inside)
	t.Cleanup(func() { vmtest.Must(t, "umount", inside) })
	expect(t, 0, "check", image)
	dev := strings.TrimSpace(expect(t, 0, "map", "--no-guard", inside+"/image.img", "odd").Stdout)
	vmtest.Mkfs(t, "ext4", dev)
	at := t.TempDir() + "/a\u00a0b c"
	vmtest.Must(t, "mkdir", at)
	vmtest.Must(t, "mount", dev, at)
	if r := cli("unmap", "odd"); r.Code != 5 || !strings.Contains(r.Stderr, "mount "+at) {
		t.Errorf("unmap of a mounted one: exit code %d, %s", r.Code, r.Stderr)
	}
	vmtest.Must(t, "umount", at)
	expect(t, 0, "unmap", "odd")
	nothingLeft(t, image)
}
