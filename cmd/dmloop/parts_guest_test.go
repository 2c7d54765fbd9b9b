//go:build vmtest

package main

import (
	"os"
	"strings"
	"testing"

	"dmloop/internal/vmtest"
)

// The devices of partitions show what is in them, go with the mapping, and are not made
// of a table that a stranger may have written to do harm.
func TestMapPartitions(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "8M")
	for _, label := range []string{"dos", "gpt"} {
		fill(t, image, 8<<20, 1)
		if r := vmtest.RunInput(t, "label: "+label+"\nstart=2048,size=4096\nstart=6144,size=8192\n", "sfdisk", "-q", image); r.Code != 0 {
			t.Fatal(r.Stderr)
		}
		vmtest.Must(t, "sync")
		want := vmtest.Must(t, "sh", "-c", "dd if="+image+" bs=512 skip=6144 count=8192 status=none | sha256sum")
		expect(t, 0, "map", "--no-guard", "-P", image, "vol")
		if got := vmtest.Must(t, "sh", "-c", "dd if=/dev/mapper/volp2 bs=512 status=none | sha256sum"); got != want {
			t.Errorf("%s: volp2 shows something else", label)
		}
		if n := vmtest.Sectors(t, "/dev/mapper/volp1"); n != 4096 {
			t.Errorf("%s: volp1 has %d sectors", label, n)
		}
		expect(t, 0, "unmap", "vol")
		nothingLeft(t, image)
		if left := vmtest.Must(t, "dmsetup", "info", "-c", "--noheadings", "-o", "name"); strings.Contains(left, "volp") {
			t.Errorf("%s: left %s", label, left)
		}
	}
	// Of the header of a GPT only the number of entries, and then its checksum, is wrong.
	if err := onFile(image, os.O_WRONLY, func(f *os.File) error {
		_, err := f.WriteAt([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 512+80)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "sync")
	if r := expect(t, 1, "map", "--no-guard", "-P", image, "vol"); !strings.Contains(r.Stderr, "claims 4294967295 entries") {
		t.Errorf("%s", r.Stderr)
	}
	nothingLeft(t, image)
}

// Partitions inside get devices that come and go with the mapping; an image without a
// partition table has none.
func TestPartscan(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "16M")
	devices := func() string { return vmtest.Must(t, "ls", "/dev/mapper") }
	expect(t, 0, "map", "--no-guard", "-P", image)
	if strings.Contains(devices(), "imagep") {
		t.Errorf("partitions of nothing:\n%s", devices())
	}
	expect(t, 0, "unmap", "image")
	if r := vmtest.RunInput(t, "label: gpt\nsize=4M\nsize=2M\n", "sfdisk", "-q", image); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	expect(t, 0, "map", "--no-guard", "-P", "-r", image)
	for name, size := range map[string]string{"imagep1": "4194304", "imagep2": "2097152"} {
		if got := strings.TrimSpace(vmtest.Must(t, "blockdev", "--getsize64", "/dev/mapper/"+name)); got != size {
			t.Errorf("%s has %s bytes, want %s", name, got, size)
		}
	}
	if r := expect(t, 0, "list", "--raw", "-n", "-o", "NAME,RO"); r.Stdout != "image 1\n" {
		t.Errorf("%q", r.Stdout)
	}
	user, err := os.Open("/dev/mapper/imagep2")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, 5, "unmap", "image")
	user.Close()
	expect(t, 0, "unmap", "image")
	nothingLeft(t, image)
	if strings.Contains(devices(), "image") {
		t.Errorf("left behind:\n%s", devices())
	}
}
