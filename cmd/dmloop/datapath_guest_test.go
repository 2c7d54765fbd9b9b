//go:build vmtest

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"dmloop/internal/vmtest"
)

// What is written through the device is what the file holds afterwards, and the
// other way round, on every file system and stack; nobody else's data changes.
func TestDataPath(t *testing.T) {
	for _, kind := range []hostKind{ext4Host, ext4Host1K, xfsHost, xfsHost1K} {
		for _, stack := range []string{"shim", "linear", "striped"} {
			// Emulated kernels take a third, in which each file system and each stack is.
			chosen := map[string]string{ext4Host.name: "shim", ext4Host1K.name: "linear", xfsHost.name: "striped", xfsHost1K.name: "linear"}
			if stack == chosen[kind.name] || vmtest.Kernel(t) == "uml" || everything() {
				t.Run(kind.name+" on "+stack, func(t *testing.T) { dataPath(t, kind, stack) })
			}
		}
	}
}

func dataPath(t *testing.T, kind hostKind, stack string) {
	h := newHost(t, kind, stack)
	if stack == "linear" {
		h.roomAtBorder(t)
	}
	table := bothWays(t, h, 24<<20)
	if disks := len(devicesOf(table)); stack != "shim" && disks != 2 {
		t.Errorf("the image lies on %d disks: %s", disks, table)
	}
}

// devicesOf lists the devices that a table of linear rows names, each once.
func devicesOf(table string) (devices []string) {
	for _, line := range strings.Split(strings.TrimSpace(table), "\n") {
		if f := strings.Fields(line); len(f) == 5 && !slices.Contains(devices, f[3]) {
			devices = append(devices, f[3])
		}
	}
	return devices
}

// bothWays makes an image, writes all of it through its device and then through the file,
// reads each the other way, and proves that neighbours and file system are as they were.
// It returns the mapping's table.
func bothWays(t *testing.T, h *host, size int64) string {
	t.Helper()
	neighbours := map[string]string{}
	neighbour := func(name string) {
		vmtest.RandomFile(t, h.path(name), 1<<20, uint64(len(name)))
		neighbours[name] = vmtest.ChecksumFile(t, h.path(name))
	}
	neighbour("before")
	image := h.image(t, "image.img", fmt.Sprint(size))
	neighbour("behind")
	if sum := vmtest.ChecksumFile(t, image); sum != zeroSum(t, size) {
		t.Error("a new image is not all zeros")
	}

	mappable(t, h.kind, image)
	want := expect(t, 0, "table", image).Stdout
	sameExtents(t, image)
	dev := mapIt(t, image, "image")
	if got := vmtest.Must(t, "dmsetup", "table", "image"); got != want {
		t.Errorf("dmsetup table prints\n%s\ndmloop table printed\n%s", got, want)
	}
	if sectors := vmtest.Sectors(t, dev); sectors != size/512 {
		t.Errorf("the device has %d sectors", sectors)
	}

	if got, want := sectorSize(t, dev), sectorSize(t, h.dev); got != want {
		t.Errorf("the device has sectors of %d bytes, its host %d", got, want)
	}

	// Through the device. The file was read above: its stale pages must not come back.
	wrote := fill(t, dev, size, 1)
	expect(t, 0, "verify")
	expect(t, 0, "unmap", "image")
	if got := vmtest.ChecksumFile(t, image); got != wrote {
		t.Error("the file does not hold what was written through the device")
	}
	h.remount(t)
	if got := vmtest.ChecksumFile(t, image); got != wrote {
		t.Error("after remounting the file does not hold what was written through the device")
	}

	// Through the file, and left dirty: map writes it back.
	wrote = fill(t, image, size, 2)
	dev = mapIt(t, image, "image")
	if got := vmtest.ChecksumFile(t, dev); got != wrote {
		t.Error("the device does not show what was written to the file")
	}
	expect(t, 0, "unmap", "image")
	if got := vmtest.ChecksumFile(t, image); got != wrote {
		t.Error("the file changed while it was only read")
	}
	h.check(t)
	for name, sum := range neighbours {
		if got := vmtest.ChecksumFile(t, h.path(name)); got != sum {
			t.Errorf("the neighbour %q changed", name)
		}
	}
	nothingLeft(t, image)
	return want
}

// zeroSum is the checksum of size zeros.
func zeroSum(t testing.TB, size int64) string {
	t.Helper()
	path := "/run/zeros"
	defer os.Remove(path)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return vmtest.ChecksumFile(t, path)
}

type row struct{ Logical, Physical, Length int64 }

// sameExtents compares dmloop extents with filefrag. filefrag counts in blocks.
func sameExtents(t testing.TB, image string) int {
	t.Helper()
	theirs := filefrag(t, image)
	var ours struct {
		Size    int64
		Extents []row
	}
	if err := json.Unmarshal([]byte(expect(t, 0, "extents", "--json", image).Stdout), &ours); err != nil {
		t.Fatal(err)
	}
	if len(theirs) == 0 || len(theirs) != len(ours.Extents) {
		t.Fatalf("filefrag lists %d extents, dmloop %d", len(theirs), len(ours.Extents))
	}
	for i := range theirs {
		if theirs[i] != ours.Extents[i] {
			t.Fatalf("extent %d: filefrag %+v, dmloop %+v", i, theirs[i], ours.Extents[i])
		}
	}
	return len(theirs)
}

// filefrag lists a file's extents in bytes.
func filefrag(t testing.TB, path string) []row {
	t.Helper()
	var theirs []row
	for _, line := range strings.Split(vmtest.Must(t, "filefrag", "-v", "-e", "-b512", path), "\n") {
		f := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == ':' || r == '.' })
		if len(f) < 6 {
			continue
		}
		if _, err := strconv.Atoi(f[0]); err != nil {
			continue
		}
		var n [5]int64
		for i := range n {
			v, err := strconv.ParseInt(f[i+1], 10, 64)
			if err != nil {
				t.Fatalf("filefrag: %q", line)
			}
			n[i] = v * 512
		}
		theirs = append(theirs, row{n[0], n[2], n[4]})
	}
	return theirs
}
