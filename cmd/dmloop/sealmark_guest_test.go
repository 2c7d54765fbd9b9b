//go:build vmtest

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/vmtest"
)

// sealMark returns the attribute that says that an image is sealed, as getfattr prints
// it, or "".
func sealMark(t testing.TB, image string) string {
	t.Helper()
	_, value, _ := strings.Cut(vmtest.Run(t, "getfattr", "--absolute-names", "-e", "hex", "-n", "trusted.dmloop.seal", image).Stdout, "=")
	return strings.TrimSpace(value)
}

// checkedAs returns what check says of an image, and its notes.
func checkedAs(t testing.TB, flags ...string) (checkedJSON, string) {
	t.Helper()
	r := cli(append([]string{"check", "--json"}, flags...)...)
	var got checkJSON
	if err := json.Unmarshal([]byte(r.Stdout), &got); err != nil || len(got.Images) != 1 {
		t.Fatalf("%v: %v\n%s%s", flags, err, r.Stdout, r.Stderr)
	}
	return got.Images[0], r.Stderr
}

// copyOver writes the content of one file over the beginning of another, which keeps
// its inode.
func copyOver(t testing.TB, from, to string) {
	t.Helper()
	vmtest.Must(t, "dd", "if="+from, "of="+to, "bs=1M", "conv=notrunc,fsync", "status=none")
}

// Whoever uses a plain mapping writes a whole sealed image to it, to the byte: the image
// stays what it was, of the same size, and the kernel takes no page of it. Only the
// administrator's word makes it sealed.
func TestContentCannotSeal(t *testing.T) {
	for _, kind := range []hostKind{ext4Host, xfsHost} {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			const size = 4 << 20
			forged := h.image(t, "forged.img", fmt.Sprint(size-12<<10))
			payload := fill(t, forged, size-12<<10, 1)
			expect(t, 0, "seal", forged)
			image := h.image(t, "image.img", fmt.Sprint(size))
			if st, err := os.Stat(forged); err != nil || st.Size() != size {
				t.Fatalf("the forged content has %d bytes, %v: it has to fit", st.Size(), err)
			}
			dev := strings.TrimSpace(expect(t, 0, "map", "--no-guard", "--unsafe", image, "vm").Stdout)
			copyOver(t, forged, dev)
			sum := vmtest.ChecksumFile(t, dev)
			expect(t, 0, "unmap", "vm")

			c, notes := checkedAs(t, image)
			if c.Sealed || c.Mappable == lacksGate(t, kind) || int64(c.Size) != size || !strings.Contains(notes, `{"note":`) || !strings.Contains(notes, "dmloop seal --adopt "+image) {
				t.Errorf("check: %+v\n%s", c, notes)
			}
			r := expect(t, 0, "map", "--no-guard", "--unsafe", image, "vm")
			if !strings.Contains(r.Stderr, "dmloop: note: only the image's content says that it is sealed") {
				t.Errorf("map says %q", r.Stderr)
			}
			if pins := expect(t, 0, "list", "-n", "--raw", "-o", "PIN", "vm").Stdout; strings.Contains(pins, "swap") {
				t.Errorf("pinned by %s", pins)
			}
			if swaps := vmtest.Must(t, "cat", "/proc/swaps"); strings.Contains(swaps, image) {
				t.Errorf("the kernel took it: %s", swaps)
			}
			if vmtest.Sectors(t, dev) != size/512 || vmtest.ChecksumFile(t, dev) != sum {
				t.Errorf("the device has %d sectors of other content", vmtest.Sectors(t, dev))
			}
			expect(t, 0, "unmap", "vm")
			if r := expect(t, 3, "unseal", image); !strings.Contains(r.Stderr, "(seal-corrupt)") || !strings.Contains(r.Stderr, "seal --adopt") {
				t.Errorf("unseal says %s", r.Stderr)
			}

			// It is sealed as any content is, and the device shows all of it.
			expect(t, 0, "seal", image)
			dev = mapSealed(t, image, "vm")
			if vmtest.ChecksumFile(t, dev) != sum {
				t.Error("sealed, the device shows something else")
			}
			expect(t, 0, "unmap", "vm")
			unsealed(t, image, sum)

			// The word of whoever maps it.
			if c, _ := checkedAs(t, "--pin=swap", image); !c.Sealed || !c.Mappable {
				t.Errorf("check --pin=swap: %+v", c)
			}
			dev = mapSealed(t, image, "vm", "--pin=swap")
			if vmtest.Sectors(t, dev) != size/512-24 || vmtest.ChecksumFile(t, dev) != payload {
				t.Error("--pin=swap shows something else")
			}
			expect(t, 0, "unmap", "vm")
			if out := expect(t, 0, "pin", "--pin=swap", image).Stdout; !strings.Contains(out, "swap") {
				t.Errorf("pin --pin=swap: %s", out)
			}
			expect(t, 0, "unpin", image)
			if mark := sealMark(t, image); mark != "" {
				t.Errorf("a word for once left the mark %s", mark)
			}
			expect(t, 3, "map", "--pin=swap", h.image(t, "plain.img", "1M"))
			nothingLeft(t, image, forged)
			h.check(t)
		})
	}
}

// A copy that lost its attributes counts as content until it is adopted, which changes
// nothing but the attribute.
func TestSealAdopt(t *testing.T) {
	for _, kind := range []hostKind{ext4Host, btrfsHost} {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			image := h.image(t, "image.img", "2M")
			sum := fill(t, image, 2<<20, 1)
			plain := h.image(t, "plain.img", "1M")
			if r := expect(t, 3, "seal", "--adopt", plain); !strings.Contains(r.Stderr, "no record of a seal (unsealed)") {
				t.Errorf("adopting a plain image: %s", r.Stderr)
			}
			expect(t, 0, "seal", image)
			mark := sealMark(t, image)
			if !strings.HasPrefix(mark, "0x444d4c505345414c") { // DMLPSEAL
				t.Errorf("the mark is %q", mark)
			}
			expect(t, 0, "seal", "--adopt", image)
			lost := h.image(t, "lost.img", fmt.Sprint(2<<20+12<<10))
			copyOver(t, image, lost)
			c, notes := checkedAs(t, lost)
			if c.Sealed || !strings.Contains(notes, "seal --adopt "+lost) {
				t.Errorf("check of the copy: %+v\n%s", c, notes)
			}
			if p := c.Problems; kind.fstype == "btrfs" && (len(p) != 1 || p[0].Rule != extents.Unsealed || !strings.HasPrefix(p[0].Hint, "if dmloop sealed it: dmloop seal --adopt "+lost)) {
				t.Errorf("check of the copy: %+v", p)
			}
			before := vmtest.Must(t, "sh", "-c", `stat -c '%s %a %Y' "$0"; sha256sum <"$0"`, lost)
			expect(t, 0, "seal", "--adopt", lost)
			if after := vmtest.Must(t, "sh", "-c", `stat -c '%s %a %Y' "$0"; sha256sum <"$0"`, lost); after != before || sealMark(t, lost) != mark {
				t.Errorf("adopted:\n%sbefore:\n%s", after, before)
			}
			dev := mapSealed(t, lost, "lost")
			if vmtest.ChecksumFile(t, dev) != sum {
				t.Error("the adopted copy shows something else")
			}
			if r := cli("seal", "--adopt", lost); r.Code != 5 {
				t.Errorf("adopting a mapped image: exit code %d, %s", r.Code, r.Stderr)
			}
			expect(t, 0, "unmap", "lost")
			unsealed(t, lost, sum)
			unsealed(t, image, sum)
		})
	}
}

// Swap on a mapping is a use like any other: the image can be mapped, checked, sealed
// and made plain again whatever mkswap and the kernel have written to it.
func TestSwapOnAMapping(t *testing.T) {
	for _, kind := range []hostKind{ext4Host, xfsHost} {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			image := h.image(t, "image.img", "4M")
			swapped := func(dev string) {
				t.Helper()
				vmtest.Must(t, "swapon", dev)
				if r := cli("unmap", "vol"); r.Code != 5 || !strings.Contains(r.Stderr, "in use by swap") {
					t.Errorf("unmap of active swap: exit code %d, %s", r.Code, r.Stderr)
				}
				vmtest.Must(t, "swapoff", dev)
			}
			dev := strings.TrimSpace(expect(t, 0, "map", "--no-guard", "--unsafe", image, "vol").Stdout)
			vmtest.Must(t, "mkswap", "-q", "-L", "inside", dev)
			swapped(dev)
			sum := vmtest.ChecksumFile(t, dev)
			expect(t, 0, "unmap", "vol")
			if c, _ := checkedAs(t, image); c.Mappable == lacksGate(t, kind) || c.Sealed {
				t.Errorf("check: %+v", c)
			}
			for range 2 {
				dev = strings.TrimSpace(expect(t, 0, "map", "--no-guard", "--unsafe", image, "vol").Stdout)
				if vmtest.ChecksumFile(t, dev) != sum {
					t.Error("mapped again, it shows something else")
				}
				swapped(dev)
				sum = vmtest.ChecksumFile(t, dev)
				expect(t, 0, "unmap", "vol")
			}
			expect(t, 0, "seal", image)
			dev = mapSealed(t, image, "vol")
			if vmtest.ChecksumFile(t, dev) != sum || !strings.Contains(vmtest.Must(t, "blkid", "-p", dev), `LABEL="inside"`) {
				t.Error("sealed, it shows something else")
			}
			vmtest.Must(t, "mkswap", "-q", "-L", "again", dev)
			swapped(dev)
			sum = vmtest.ChecksumFile(t, dev)
			expect(t, 0, "unmap", "vol")
			if c, _ := checkedAs(t, image); !c.Mappable || !c.Sealed {
				t.Errorf("check of the sealed image: %+v", c)
			}
			dev = mapSealed(t, image, "vol")
			if vmtest.ChecksumFile(t, dev) != sum {
				t.Error("sealed and mapped again, it shows something else")
			}
			swapped(dev)
			sum = vmtest.ChecksumFile(t, dev)
			expect(t, 0, "unmap", "vol")
			unsealed(t, image, sum)
			dev = strings.TrimSpace(expect(t, 0, "map", "--no-guard", "--unsafe", image, "vol").Stdout)
			swapped(dev)
			expect(t, 0, "unmap", "vol")
			// The file itself as swap is another matter.
			vmtest.Must(t, "chmod", "600", image)
			vmtest.Must(t, "swapon", image)
			if r := expect(t, 5, "map", image); !strings.Contains(r.Stderr, "(active-swap)") {
				t.Errorf("map says %s", r.Stderr)
			}
			vmtest.Must(t, "swapoff", image)
			mappable(t, kind, image)
			nothingLeft(t, image)
			h.check(t)
		})
	}
}

// The pin of a mapping that was forgotten goes on naming the claim. What is in the image by
// then may be anybody's: the mark makes nothing sealed that the kernel does not hold.
func TestMarkOfAForgottenPin(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "2M")
	expect(t, 0, "seal", image)
	expect(t, 0, "pin", image)
	if c, _ := checkedAs(t, image); !c.Sealed {
		t.Errorf("held by the kernel: %+v", c)
	}
	vmtest.Must(t, "chattr", "-i", image)
	vmtest.Must(t, "swapoff", image)
	if c, _ := checkedAs(t, image); !c.Sealed {
		t.Errorf("with its attribute: %+v", c)
	}
	vmtest.Must(t, "setfattr", "-x", "trusted.dmloop.seal", image)
	if kinds := vmtest.Must(t, "getfattr", "--absolute-names", "-n", "trusted.dmloop.pin", image); !strings.Contains(kinds, "swap") {
		t.Fatalf("the mark is %s", kinds)
	}
	c, notes := checkedAs(t, image)
	if c.Sealed || !strings.Contains(notes, "seal --adopt") {
		t.Errorf("without it: %+v\n%s", c, notes)
	}
	expect(t, 0, "map", "--no-guard", "--unsafe", image, "vol")
	if swaps := vmtest.Must(t, "cat", "/proc/swaps"); strings.Contains(swaps, image) {
		t.Errorf("the kernel took it: %s", swaps)
	}
	expect(t, 0, "unmap", "vol")
	expect(t, 0, "unpin", image)
	nothingLeft(t, image)
}

// Nobody reads notes at boot, and what checks a new device writes to it: a line of
// dmlooptab whose image only looks sealed is refused, and says how to go on.
func TestTabAndALostSeal(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image, lost := h.image(t, "image.img", "2M"), h.image(t, "lost.img", fmt.Sprint(2<<20+12<<10))
	sum := fill(t, image, 2<<20, 1)
	expect(t, 0, "seal", image)
	copyOver(t, image, lost)
	tab := h.path("tab")
	if err := os.WriteFile(tab, []byte("lost "+lost+" - no-guard,unsafe\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := cli("activate", "--tab", tab, "lost")
	if r.Code == 0 || !strings.Contains(r.Stderr, "dmloop seal --adopt "+lost) {
		t.Errorf("activate: exit code %d\n%s", r.Code, r.Stderr)
	}
	nothingLeft(t, lost)
	if r := expect(t, 0, "map", "--no-guard", "--unsafe", lost, "lost"); !strings.Contains(r.Stderr, "note:") {
		t.Errorf("by hand: %s", r.Stderr)
	}
	expect(t, 0, "unmap", "lost")
	expect(t, 0, "seal", "--adopt", lost)
	expect(t, 0, "activate", "--tab", tab, "lost")
	if vmtest.ChecksumFile(t, "/dev/mapper/lost") != sum {
		t.Error("the device shows something else")
	}
	expect(t, 0, "unmap", "lost")
	nothingLeft(t, image, lost)
}
