//go:build vmtest

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"dmloop/internal/vmtest"
)

// An image in more than 20,000 pieces, each between blocks of somebody else.
func TestFragmentedImage(t *testing.T) {
	for _, kind := range []hostKind{ext4Host, xfsHost} {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			const pieces, blocks, block = 20000, 20400, 4096
			image := vmtest.FragmentedFile(t, h.dir, "image.img", blocks, block)
			between := vmtest.ChecksumFile(t, image+".neighbour")
			want := expect(t, 0, "table", image).Stdout
			if n := strings.Count(want, "\n"); n < pieces {
				t.Errorf("the table has %d rows", n)
			}
			if n := sameExtents(t, image); n < pieces {
				t.Errorf("%d extents", n)
			}
			content := vmtest.ChecksumFile(t, image)
			dev := mapIt(t, image, "image")
			if got := vmtest.Must(t, "dmsetup", "table", "image"); got != want {
				t.Error("dmsetup table does not print what dmloop table printed")
			}
			if got := vmtest.ChecksumFile(t, dev); got != content {
				t.Error("the device does not show the file's content")
			}
			wrote := fill(t, dev, blocks*block, 3)
			expect(t, 0, "unmap", "image")
			if got := vmtest.ChecksumFile(t, image); got != wrote {
				t.Error("the file does not hold what was written through the device")
			}
			if got := vmtest.ChecksumFile(t, image+".neighbour"); got != between {
				t.Error("the blocks in between changed")
			}
			expect(t, 3, "check", "--max-extents", "19999", image)
			h.check(t)
			nothingLeft(t, image)
		})
	}
}

// An image inside the file system on an image; and the order in which they go.
func TestImageInsideAnImage(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	outer := h.image(t, "outer.img", "64M")
	dev := mapIt(t, outer, "outer")
	vmtest.Mkfs(t, "ext4", dev)
	dir := vmtest.Mount(t, dev)
	inner := filepath.Join(dir, "inner.img")
	expect(t, 0, "create", inner, "8M")
	// The mount holds outer, so the inner device goes on what lies below outer; no
	// rule may call that an overlap.
	innerDev := mapIt(t, inner, "inner")
	if table := vmtest.Must(t, "dmsetup", "table", "inner"); strings.Contains(table, deviceNumber(t, dev)) {
		t.Errorf("the inner table names the outer device, which is mounted: %s", table)
	}
	wrote := fill(t, innerDev, 8<<20, 4)
	// While the inner one is there, nothing may take the outer one down.
	if r := expect(t, 5, "unmap", "outer"); !strings.Contains(r.Stderr, dir) && !strings.Contains(r.Stderr, "inner") {
		t.Errorf("why: %s", r.Stderr)
	}
	vmtest.Umount(t, dir)
	r := cli("unmap", "outer")
	if r.Code != 5 || !strings.Contains(r.Stderr, "inner") {
		t.Errorf("unmap of the outer one: exit code %d\n%s", r.Code, r.Stderr)
	}
	vmtest.Must(t, "mount", dev, dir)
	expect(t, 0, "unmap", "inner")
	if got := vmtest.ChecksumFile(t, inner); got != wrote {
		t.Error("the inner file does not hold what was written")
	}
	vmtest.Umount(t, dir)
	expect(t, 0, "unmap", "outer")
	nothingLeft(t, outer)
}

func deviceNumber(t testing.TB, dev string) string {
	t.Helper()
	return strings.TrimSpace(vmtest.Must(t, "lsblk", "-dno", "MAJ:MIN", dev))
}

// A window of the image: its bytes, no others.
func TestOffsetAndSizeLimit(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "16M")
	fill(t, image, 16<<20, 5)
	for _, c := range []struct{ offset, limit, want int64 }{
		{1 << 20, 0, 15 << 20}, {0, 1 << 20, 1 << 20}, {4096, 8192, 8192}, {12 << 20, 1 << 30, 4 << 20},
	} {
		flags := []string{"--offset", fmt.Sprint(c.offset), "--sizelimit", fmt.Sprint(c.limit)}
		want := expect(t, 0, append([]string{"table", image}, flags...)...).Stdout
		dev := mapIt(t, image, "part", flags...)
		if got := vmtest.Must(t, "dmsetup", "table", "part"); got != want {
			t.Errorf("%q: %s, want %s", flags, got, want)
		}
		file, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		shown, err := os.ReadFile(dev)
		if err != nil || int64(len(shown)) != c.want || string(shown) != string(file[c.offset:c.offset+c.want]) {
			t.Errorf("%q: the device shows %d bytes, or others than the file, %v", flags, len(shown), err)
		}
		expect(t, 0, "unmap", "part")
	}
	// Windows that do not begin and end on blocks.
	for _, flags := range [][]string{{"-o", "512"}, {"-o", "100"}, {"--sizelimit", "5632"}, {"--sizelimit", "1000"}, {"-o", "4096", "--sizelimit", "4097"}} {
		r := expect(t, 3, append([]string{"check", image}, flags...)...)
		if strings.Count(r.Stdout, "size-unaligned") != 1 || !strings.Contains(r.Stdout, ", 1 problem\n") {
			t.Errorf("%q: %s", flags, r.Stdout)
		}
		expect(t, 3, append([]string{"map", "--no-guard", image}, flags...)...)
	}
	expect(t, 2, "map", "--no-guard", "-o", "16M", image)
	nothingLeft(t, image)
}

func TestReadOnly(t *testing.T) {
	h := newHost(t, xfsHost, "shim")
	image := h.image(t, "image.img", "8M")
	sum := fill(t, image, 8<<20, 6)
	dev := mapIt(t, image, "image", "-r")
	if f, err := os.OpenFile(dev, os.O_WRONLY, 0); err == nil {
		if _, err := f.WriteAt(make([]byte, 4096), 0); err == nil {
			err = f.Sync()
			t.Errorf("writing a read-only device: %v", err)
		}
		f.Close()
	}
	if got := strings.TrimSpace(vmtest.Must(t, "blockdev", "--getro", dev)); got != "1" {
		t.Errorf("blockdev --getro: %s", got)
	}
	if got := vmtest.ChecksumFile(t, dev); got != sum {
		t.Error("the device does not show the file")
	}
	if r := expect(t, 0, "list", "--raw", "-n", "-o", "RO,OPEN"); r.Stdout != "1 0\n" {
		t.Errorf("list: %q", r.Stdout)
	}
	expect(t, 0, "verify")
	expect(t, 0, "unmap", image)
	if got := vmtest.ChecksumFile(t, image); got != sum {
		t.Error("the file changed")
	}
	nothingLeft(t, image)
}

// What two users of one image get, and one user of a busy device.
func TestBusy(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "16M")
	other := h.image(t, "other.img", "1M")
	dev := mapIt(t, image, "image")
	for _, args := range [][]string{
		{"map", "--no-guard", image}, {"map", "--no-guard", image, "elsewhere"}, {"map", "--no-guard", other, "image"},
		{"map", "--no-guard", other, "host"}, {"map", "--dry-run", other, "host"}, {"map", "--seal", other, "host"},
		{"pin", image}, {"unpin", image}, {"seal", image}, {"provision", image}, {"create", image, "1M"},
	} {
		expect(t, 5, args...)
	}
	if r := expect(t, 0, "check", "--json", other); !strings.Contains(r.Stdout, `"sealed": false`) {
		t.Errorf("sealed for a mapping that was refused: %s", r.Stdout)
	}
	expect(t, 3, "map", "--dry-run", "--pin=none", other)
	expect(t, 0, "map", "--dry-run", "--pin=none", "--unsafe", other)
	if err := os.Link(image, h.path("hardlink")); err == nil {
		t.Error("a link was made to an immutable file")
	}

	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	// Opened by this very process, which unmap does not count: the kernel does.
	if r := expect(t, 5, "unmap", "image"); !strings.Contains(r.Stderr, "--deferred") {
		t.Errorf("%s", r.Stderr)
	}
	if r := expect(t, 0, "list", "--raw", "-n", "-o", "NAME,OPEN,STATE"); r.Stdout != "image 1 healthy\n" {
		t.Errorf("after a refused unmap: %q", r.Stdout)
	}
	expect(t, 0, "unmap", "--deferred", "image")
	if r := expect(t, 0, "list", "--raw", "-n", "-o", "NAME,STATE,PIN"); r.Stdout != "image releasing immutable\n" {
		t.Errorf("deferred: %q", r.Stdout)
	}
	if _, err := f.ReadAt(make([]byte, 4096), 1<<20); err != nil {
		t.Errorf("a device whose removal is deferred: %v", err)
	}
	expect(t, 5, "map", "--no-guard", image)
	f.Close()
	await(t, "the end of the device", 15*time.Second, func() bool { _, err := os.Stat("/sys/block/" + filepath.Base(devNode(t, dev))); return err != nil })
	expect(t, 0, "unmap", image) // finishes what was deferred
	nothingLeft(t, image, other)

	// Mounted: named, and not waited for.
	dev = mapIt(t, image, "image")
	vmtest.Mkfs(t, "ext4", dev)
	dir := vmtest.Mount(t, dev)
	start := time.Now()
	if r := expect(t, 5, "unmap", "image"); !strings.Contains(r.Stderr, "mount "+dir) {
		t.Errorf("%s", r.Stderr)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("the answer took %v", took)
	}

	// Forced: what was written before is on the disk, and everything later fails.
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	expect(t, 0, "unmap", "--force", "image")
	if got := vmtest.Must(t, "dmsetup", "table", "image"); got != "0 32768 error \n" {
		t.Errorf("the table is %q", got)
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
	f, err = os.Open(dev)
	if err == nil {
		_, err = f.ReadAt(make([]byte, 4096), 8<<20)
		f.Close()
	}
	if err == nil {
		t.Error("a device that was torn down can be read")
	}
	vmtest.Must(t, "umount", dir)
	if r := cli("unmap", "image"); r.Code != 0 && r.Code != 6 {
		t.Errorf("exit code %d\n%s", r.Code, r.Stderr)
	}
	nothingLeft(t, image)
	vmtest.Must(t, "mount", "-o", "loop,ro", image, dir)
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "before" {
		t.Errorf("what was written before --force: %q, %v", b, err)
	}
}

func devNode(t testing.TB, dev string) string {
	t.Helper()
	node, err := filepath.EvalSymlinks(dev)
	if err != nil {
		return dev
	}
	return node
}

// What list and status show, in their three forms.
func TestListAndStatus(t *testing.T) {
	h := newHost(t, xfsHost, "shim")
	image := h.image(t, "a b.img", "8M")
	uuid := "00112233445566778899aabbccddeeff"
	r := expect(t, 0, "map", "--no-guard", "--unsafe", "--json", "--uuid", uuid, image)
	t.Cleanup(func() { cli("unmap", image) })
	name := `a\x20b`
	var made, listed, status mappingsJSON
	for _, c := range []struct {
		text string
		into *mappingsJSON
	}{
		{r.Stdout, &made}, {expect(t, 0, "list", "-J").Stdout, &listed}, {expect(t, 0, "status", "--json", "a b").Stdout, &status},
	} {
		if err := json.Unmarshal([]byte(c.text), c.into); err != nil || len(c.into.Mappings) != 1 {
			t.Fatalf("%v\n%s", err, c.text)
		}
	}
	m := listed.Mappings[0]
	want := mappingJSON{Name: name, Device: "/dev/mapper/" + name, MajMin: m.MajMin, Image: image, Size: 8 << 20, Extents: m.Extents,
		Pin: []string{"nodefrag", "immutable"}, Grade: "guarded", State: "healthy", UUID: "DMLOOP-" + uuid + "-" + name, Gate: "none", GateWhy: "it is switched off"}
	for what, got := range map[string]mappingJSON{"map": made.Mappings[0], "list": m, "status": status.Mappings[0]} {
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("%s: %+v\nwant %+v", what, got, want)
		}
	}
	if m.MajMin != deviceNumber(t, m.Device) || m.Extents != sameExtents(t, image) {
		t.Errorf("maj:min %s, %d extents", m.MajMin, m.Extents)
	}
	raw := expect(t, 0, "list", "--raw", "--noheadings", "-b", "-o", "name,size,image,maj:min,ro").Stdout
	if want := fmt.Sprintf("a\\x20b 8388608 %s %s 0\n", strings.ReplaceAll(image, " ", `\x20`), m.MajMin); raw != want && raw != strings.Replace(want, `a\x20b`, `a\\x20b`, 1) {
		t.Errorf("raw: %q, want %q", raw, want)
	}
	lines := strings.Split(expect(t, 0, "list").Stdout, "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "NAME") || !strings.Contains(lines[1], "8M") {
		t.Errorf("%q", lines)
	}
	if got := len(strings.Fields(expect(t, 0, "list", "--output-all", "--raw").Stdout)); got != 2*len(listColumns) {
		t.Errorf("%d fields in two lines", got)
	}
	text := expect(t, 0, "status", name).Stdout
	for _, word := range []string{"NAME", image, "nodefrag+immutable", "guarded", "healthy"} {
		if !strings.Contains(text, word) {
			t.Errorf("status does not show %q:\n%s", word, text)
		}
	}
	// A name as list prints it, as it was given, the image, another way to the image.
	for _, target := range []string{name, "a b", image, filepath.Join(h.dir, ".", "a b.img")} {
		expect(t, 0, "status", target)
	}
	// A lost pin is seen at once.
	vmtest.Must(t, "chattr", "-i", image)
	if r := cli("status", name); r.Code != 4 || !strings.Contains(r.Stdout, "stale") {
		t.Errorf("without its pin: exit code %d\n%s", r.Code, r.Stdout)
	}
	if r := cli("verify"); r.Code != 4 {
		t.Errorf("verify: exit code %d\n%s", r.Code, r.Stdout)
	}
	vmtest.Must(t, "chattr", "+i", image)
	expect(t, 0, "verify")
	expect(t, 0, "unmap", "a b")
	nothingLeft(t, image)
}

// Pins that were there before a mapping are there after it, the others are not.
func TestPinsOfOthersStay(t *testing.T) {
	for _, kind := range []hostKind{ext4Host, xfsHost} {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			image := h.image(t, "image.img", "4M")
			vmtest.Must(t, "chattr", "+i", image)
			mapIt(t, image, "image")
			expect(t, 0, "unmap", "image")
			if flags, _, _ := strings.Cut(vmtest.Must(t, "lsattr", image), " "); !strings.Contains(flags, "i") {
				t.Errorf("the user's flag is gone: %s", flags)
			}
			vmtest.Must(t, "chattr", "-i", image)
			expect(t, 0, "pin", image)
			mapIt(t, image, "image")
			expect(t, 0, "unmap", "image")
			if flags, _, _ := strings.Cut(vmtest.Must(t, "lsattr", image), " "); !strings.Contains(flags, "i") {
				t.Errorf("the pin set by hand is gone: %s", flags)
			}
			expect(t, 0, "unpin", image)
			nothingLeft(t, image)
		})
	}
}

// Names as users give them, all the way to the kernel and back.
func TestOddNames(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	for i, base := range []string{"smørrebrød 日本.img", "new\nline.img", "-rf", "a;b$(c)'d\".img", strings.Repeat("n", 88) + ".img", "\xff\xfe.img", ".hidden"} {
		image := h.path(base)
		expect(t, 0, "create", "--", image, "1M")
		r := expect(t, 0, "map", "--no-guard", "--", image)
		dev := strings.TrimSpace(r.Stdout)
		sum := fill(t, dev, 1<<20, byte(i))
		expect(t, 0, "verify")
		if n := strings.Count(expect(t, 0, "list", "--raw", "-n").Stdout, "\n"); n != 1 {
			t.Errorf("%q: list prints %d lines", base, n)
		}
		expect(t, 0, "unmap", "--", image)
		if got := vmtest.ChecksumFile(t, image); got != sum {
			t.Errorf("%q: the file holds something else", base)
		}
		if err := os.Remove(image); err != nil {
			t.Fatal(err)
		}
	}
	long := h.path(strings.Repeat("n", 200) + ".img")
	expect(t, 0, "create", long, "1M")
	expect(t, 2, "map", "--no-guard", long)
	expect(t, 0, "map", "--no-guard", long, "short")
	expect(t, 0, "unmap", long)
	nothingLeft(t, long)
}

// The image is found wherever its file system is mounted, and never mistaken.
func TestMountedElsewhere(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	if err := os.Mkdir(h.path("d"), 0o755); err != nil {
		t.Fatal(err)
	}
	image := h.image(t, "d/image.img", "4M")
	bind := vmtest.Mount(t, h.path("d"), "--bind")
	dev := mapIt(t, filepath.Join(bind, "image.img"), "image")
	wrote := fill(t, dev, 4<<20, 9)
	expect(t, 5, "map", "--no-guard", image, "again")
	vmtest.Umount(t, bind)
	if err := os.Rename(h.path("d"), h.path("e")); err != nil {
		t.Fatal(err)
	}
	expect(t, 0, "verify")
	expect(t, 0, "unmap", h.path("e/image.img"))
	if got := vmtest.ChecksumFile(t, h.path("e/image.img")); got != wrote {
		t.Error("the file does not hold what was written")
	}
	nothingLeft(t, h.path("e/image.img"))

	// The host file system is unmounted while the mapping lives: the pin cannot be
	// cleared, so the record stays until it can.
	mapIt(t, h.path("e/image.img"), "image")
	vmtest.Must(t, "umount", h.dir)
	if r := cli("unmap", "image"); r.Code != 1 || !strings.Contains(r.Stderr, "pins") {
		t.Errorf("unmap: exit code %d\n%s", r.Code, r.Stderr)
	}
	if r := expect(t, 0, "list", "--raw", "-n", "-o", "NAME,STATE"); r.Stdout != "image releasing\n" {
		t.Errorf("list: %q", r.Stdout)
	}
	vmtest.Must(t, "mount", h.dev, h.dir)
	expect(t, 0, "unmap", "image")
	nothingLeft(t, h.path("e/image.img"))
}

// dmloop table --concise is what the kernel takes on its command line.
func TestConciseTable(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "4M")
	sum := fill(t, image, 4<<20, 11)
	text := strings.TrimSpace(expect(t, 0, "table", "--concise", "-r", image).Stdout)
	vmtest.Must(t, "dmsetup", "create", "--concise", text)
	defer vmtest.DmsetupRemove(t, "image")
	if got := vmtest.ChecksumFile(t, "/dev/mapper/image"); got != sum {
		t.Error("the device shows something else")
	}
	if ro := strings.TrimSpace(vmtest.Must(t, "blockdev", "--getro", "/dev/mapper/image")); ro != "1" {
		t.Errorf("read-only: %s", ro)
	}
	offset := strings.TrimSpace(expect(t, 0, "extents", "--resume-offset", image).Stdout)
	if want := strconv.FormatInt(filefrag(t, image)[0].Physical/4096, 10); offset != want {
		t.Errorf("resume offset %s, want %s", offset, want)
	}
}

// On btrfs the offset for resuming from disk is not the address that the file tells.
func TestResumeOffsetOnBtrfs(t *testing.T) {
	h := newHost(t, btrfsHost, "shim")
	image := h.image(t, "image.img", "4M")
	want := vmtest.Must(t, "btrfs", "inspect-internal", "map-swapfile", "-r", image)
	if got := expect(t, 0, "extents", "--resume-offset", image).Stdout; strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("%q, want %q", got, want)
	}
	for name, script := range map[string]string{
		"compressed": "touch f; chattr +c f; yes | head -c 1M >f; sync f",
		"inline":     "head -c 100 /dev/urandom >f; sync f",
	} {
		shell(t, h.dir, "rm -f f; "+script)
		if r := expect(t, 3, "extents", "--resume-offset", h.path("f")); !strings.Contains(r.Stderr, "first page") {
			t.Errorf("%s: %s", name, r.Stderr)
		}
	}
	vmtest.Must(t, "umount", h.dir)
	vmtest.Mkfs(t, "btrfs", h.dev, "-d", "dup")
	vmtest.Must(t, "mount", h.dev, h.dir)
	if r := expect(t, 3, "extents", "--resume-offset", h.image(t, "twice.img", "4M")); !strings.Contains(r.Stderr, "(btrfs-profile)") {
		t.Error(r.Stderr)
	}
}
