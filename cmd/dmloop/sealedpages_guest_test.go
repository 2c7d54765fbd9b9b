//go:build vmtest

package main

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/seal"
	"dmloop/internal/vmtest"
)

// sealFor seals an image of size bytes as a kernel with pages of page bytes does on
// page-aligned blocks, by docs/sealed-format.md.
func sealFor(t testing.TB, image string, size, page int64) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	prologue := 2 * page
	r := seal.Record{
		Phase: seal.PhaseSealed, PageSize: extents.Bytes(page), Prologue: extents.Bytes(prologue),
		Payload: extents.Bytes(size), Moved: extents.Bytes((size + page - 1) / page * page),
		UUID: [16]byte{6: 0x40, 8: 0x80, 15: 1},
	}
	head := make([]byte, prologue)
	if _, err := f.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	end := int64(r.Moved) + prologue + page
	for _, piece := range []struct {
		at   int64
		data []byte
	}{
		{size, make([]byte, end-size)}, {int64(r.Moved), head}, {end - 512, r.Encode()},
		{page, make([]byte, page)}, {0, seal.HeaderPage(r)},
	} {
		if _, err := f.WriteAt(piece.data, piece.at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "setfattr", "-n", seal.Attribute, "-v", "0x"+hex.EncodeToString(r.Encode()), image)
}

// An image that a kernel with another page size sealed is refused by name and left as it
// is; unsealed, which needs no such kernel, and sealed again it is mapped.
func TestSealedOtherPageSize(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	unchanged := h.neighbours(t, 2)
	here := os.Getpagesize()
	for i, page := range []int{4096, 16384, 65536} {
		if page == here {
			continue
		}
		const size = 1<<20 + 4096
		name := fmt.Sprintf("i%d", page)
		image := h.image(t, name+".img", fmt.Sprint(size))
		was := fill(t, image, size, byte(i))
		sealFor(t, image, size, int64(page))
		as := vmtest.ChecksumFile(t, image)
		for _, args := range [][]string{{"check", image}, {"map", image, name}, {"seal", image}, {"pin", image}} {
			r := expect(t, 3, args...)
			for _, want := range []string{
				fmt.Sprintf("sealed by a kernel with pages of %d bytes, this one has %d", page, here), "(unpinnable)",
				fmt.Sprintf("dmloop unseal %s, and dmloop seal %s", image, image),
			} {
				if said := r.Stdout + r.Stderr; !strings.Contains(said, want) {
					t.Errorf("pages of %d, %s does not say %q:\n%s", page, args[0], want, said)
				}
			}
		}
		if vmtest.ChecksumFile(t, image) != as {
			t.Fatal("the image was written to")
		}
		unsealed(t, image, was)
		expect(t, 0, "seal", image)
		dev := mapSealed(t, image, name)
		if vmtest.ChecksumFile(t, dev) != was {
			t.Fatal("the device shows something else")
		}
		was = fill(t, dev, size, byte(90+i))
		expect(t, 0, "unmap", name)
		unsealed(t, image, was)
	}
	unchanged(t)
	h.check(t)
}

// Blocks as large as a page, which with pages of 16 KiB no other kernel mounts: images of
// odd numbers of them, plain and sealed.
func TestBlocksOfAPage(t *testing.T) {
	page := int64(os.Getpagesize())
	h := newHost(t, hostKind{"", "ext4", []string{"-b", fmt.Sprint(page)}}, "shim")
	if h.block(t) != page {
		t.Fatalf("the host has blocks of %d bytes", h.block(t))
	}
	unchanged := h.neighbours(t, 2)
	for i, size := range []int64{page, 3 * page, 1<<20 + page} {
		name := fmt.Sprintf("i%d", i)
		image := h.image(t, name+".img", fmt.Sprint(size))
		was := fill(t, image, size, byte(i))
		for _, how := range []string{"plain", "sealed"} {
			if how == "sealed" {
				expect(t, 0, "seal", image)
			}
			sameExtents(t, image)
			dev := mapSealed(t, image, name)
			if vmtest.ChecksumFile(t, dev) != was {
				t.Fatalf("%d bytes, %s: the device shows something else", size, how)
			}
			was = fill(t, dev, size, byte(50+i))
			expect(t, 0, "unmap", name)
		}
		unsealed(t, image, was)
	}
	half := fmt.Sprint(page / 2)
	if r := expect(t, 2, "create", h.path("odd.img"), half); !strings.Contains(r.Stderr, fmt.Sprint(page)) {
		t.Errorf("create of half a block: %s", r.Stderr)
	}
	unchanged(t)
	h.check(t)
}
