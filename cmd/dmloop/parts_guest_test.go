//go:build vmtest

package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"dmloop/internal/vmtest"
	"dmloop/internal/vmtest/partcorpus"
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
	// The header of a GPT claims another number of entries, so that its checksum is wrong.
	if err := onFile(image, os.O_WRONLY, func(f *os.File) error {
		_, err := f.WriteAt([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 512+80)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	vmtest.Must(t, "sync")
	if r := expect(t, 1, "map", "--no-guard", "-P", image, "vol"); !strings.Contains(r.Stderr, "the checksum of its header is wrong") {
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
	before := vmtest.Must(t, "dmsetup", "info", "-c", "--noheadings", "-o", "name,uuid,major,minor,attr")
	for _, busy := range []string{"imagep2", "imagep1", "image"} {
		user, err := os.Open("/dev/mapper/" + busy)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, 5, "unmap", "image")
		user.Close()
		if now := vmtest.Must(t, "dmsetup", "info", "-c", "--noheadings", "-o", "name,uuid,major,minor,attr"); now != before {
			t.Errorf("unmap while %s is open left\n%s\nof\n%s", busy, now, before)
		}
		if r := expect(t, 0, "list", "--raw", "-n", "-o", "NAME,STATE"); r.Stdout != "image healthy\n" {
			t.Errorf("after an unmap while %s is open: %q", busy, r.Stdout)
		}
	}
	expect(t, 0, "unmap", "image")
	nothingLeft(t, image)
	if strings.Contains(devices(), "image") {
		t.Errorf("left behind:\n%s", devices())
	}
}

// The kernel is the judge of partition tables: what a loop device of the same file shows
// is what dmloop shows, by number, start and size, or dmloop says why it shows nothing.
func TestPartitionsAsTheKernel(t *testing.T) {
	hosts := map[int]*host{512: newHost(t, ext4Host, "shim"), 4096: largeBlocks(t)}
	images := map[int]string{}
	for block, h := range hosts {
		images[block] = h.image(t, fmt.Sprintf("image%d.img", block), "8M")
	}
	for _, c := range partcorpus.Cases() {
		image := images[c.Block]
		if err := onFile(image, os.O_WRONLY, func(f *os.File) error {
			_, err := f.WriteAt(c.Image(), 0)
			return errors.Join(err, f.Sync())
		}); err != nil {
			t.Fatal(err)
		}
		kernel := partitionsOfLoop(t, image, c.Block)
		if c.Kernel != "?" && kernel != c.Kernel {
			t.Errorf("%s: the kernel shows %q, and the corpus says %q", c.Name, kernel, c.Kernel)
		}
		r := cli("map", "--no-guard", "-P", image, "vol")
		outcome := "refused: " + c.Refuse
		switch {
		case c.Refuse != "":
			if r.Code != 1 || !strings.Contains(r.Stderr, c.Refuse) || !strings.Contains(r.Stderr, "\nhint: ") {
				t.Errorf("%s: exit code %d, want a refusal with %q and a hint\n%s", c.Name, r.Code, c.Refuse, r.Stderr)
			}
		case r.Code != 0:
			t.Errorf("%s: exit code %d\n%s", c.Name, r.Code, r.Stderr)
		default:
			outcome = "the same"
			if c.Fewer != "" {
				outcome = "fewer"
			}
			if shown, want := partitionsOfMapping(t, "vol"), strings.Trim(c.Shown(), "-"); shown != want {
				t.Errorf("%s: dmloop shows %q, the kernel %q", c.Name, shown, kernel)
			}
			expect(t, 0, "unmap", "vol")
		}
		if len(strings.Split(strings.TrimSpace(r.Stderr), "\n")) > 5 {
			t.Errorf("%s: a name got into the output?\n%s", c.Name, r.Stderr)
		}
		t.Logf("PARTS|%s|%d|%.60s|%s", c.Name, c.Block, kernel, outcome)
		nothingLeft(t, image)
	}
}

// largeBlocks is a host on a disk with logical blocks of 4096 bytes.
func largeBlocks(t *testing.T) *host {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	vmtest.Must(t, "truncate", "-s", "64M", file)
	disk := strings.TrimSpace(vmtest.Must(t, "losetup", "-f", "--show", "-b", "4096", file))
	t.Cleanup(func() { vmtest.Must(t, "losetup", "-d", disk) })
	shim := vmtest.Shim(t, disk, "large")
	vmtest.Mkfs(t, "ext4", shim)
	return &host{kind: ext4Host, dir: vmtest.Mount(t, shim), dev: shim}
}

// partitionsOfLoop is what the kernel finds on a loop device of the image.
func partitionsOfLoop(t *testing.T, image string, block int) string {
	t.Helper()
	loop := strings.TrimSpace(vmtest.Must(t, "losetup", "-r", "-P", "-f", "--show", "-b", strconv.Itoa(block), image))
	defer vmtest.Must(t, "losetup", "-d", loop)
	dirs, err := filepath.Glob(filepath.Join("/sys/block", filepath.Base(loop), filepath.Base(loop)+"p*"))
	if err != nil {
		t.Fatal(err)
	}
	value := func(dir, name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	found := map[int]string{}
	for _, dir := range dirs {
		number, err := strconv.Atoi(value(dir, "partition"))
		if err != nil {
			t.Fatal(err)
		}
		found[number] = value(dir, "start") + "+" + value(dir, "size")
	}
	return inOrder(found)
}

// partitionsOfMapping is what stands on a mapping, as dmsetup sees it.
func partitionsOfMapping(t *testing.T, name string) string {
	t.Helper()
	found := map[int]string{}
	mapping := deviceNumber(t, "/dev/mapper/"+name)
	for _, line := range strings.Split(vmtest.Must(t, "dmsetup", "table"), "\n") {
		row, ours := strings.CutPrefix(line, name+"p")
		if !ours {
			continue
		}
		var number, zero, length, start int
		var base string
		if _, err := fmt.Sscanf(row, "%d: %d %d linear %s %d", &number, &zero, &length, &base, &start); err != nil || zero != 0 || base != mapping {
			t.Fatalf("%q: %v", line, err)
		}
		found[number] = fmt.Sprintf("%d+%d", start, length)
	}
	return inOrder(found)
}

func inOrder(found map[int]string) string {
	var all []string
	for _, number := range slices.Sorted(maps.Keys(found)) {
		all = append(all, fmt.Sprintf("%d:%s", number, found[number]))
	}
	return strings.Join(all, " ")
}
