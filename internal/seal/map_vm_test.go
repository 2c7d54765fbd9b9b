//go:build vmtest

package seal

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/swap"
	"dmloop/internal/vmtest"
)

// A sealed image with a file system in it is mapped, as the table of its content
// says: the device shows what the plain image had, the file system inside takes
// heavy writes and passes its check, and the unsealed file holds what the device
// had last. Neighbours stay as they were.
func TestMappedThroughDeviceMapper(t *testing.T) {
	for _, k := range hosts {
		if !vmtest.HasFilesystem(t, k.fstype) {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			disk := vmtest.Disk(t, 0)
			shim := vmtest.Shim(t, disk, "host")
			vmtest.Mkfs(t, k.fstype, shim, k.mkfs...)
			dir := vmtest.Mount(t, shim, vmtest.MountOptions(k.fstype)...)
			h := host{t, k.fstype, shim, dir, k.blockSize(t, dir)}
			neighbour := h.create("neighbour", 5<<20, 99)
			path := h.create("image", 48<<20, 1)
			vmtest.Must(t, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", "-b", "1024", path)
			// mkfs has punched holes: write all of it.
			vmtest.Must(t, "dd", "if="+path, "of="+path, "bs=1M", "conv=notrunc,fsync", "status=none")
			was := vmtest.ChecksumFile(t, path)
			f := h.open(path)
			r := h.seal(f)
			for round := range 2 {
				h.claim(f)
				dev := vmtest.DmsetupCreate(t, "image", rowsOf(h.shown(f, r).Merge(), disk))
				if got := vmtest.ChecksumFile(t, dev); got != was {
					t.Fatalf("round %d: the device shows something else", round)
				}
				inside := vmtest.Mount(t, dev)
				for i := range 6 {
					vmtest.RandomFile(t, filepath.Join(inside, fmt.Sprintf("f%d-%d", round, i)), 3<<20, uint64(i))
				}
				if err := os.RemoveAll(filepath.Join(inside, fmt.Sprintf("f%d-1", round))); err != nil {
					t.Fatal(err)
				}
				pageOut(t)
				vmtest.Umount(t, inside)
				vmtest.Must(t, "e2fsck", "-fn", dev)
				was = vmtest.ChecksumFile(t, dev)
				vmtest.DmsetupRemove(t, "image")
				if err := swap.Release(f); err != nil {
					t.Fatal(err)
				}
			}
			if err := Unseal(f, h.bare()); err != nil {
				t.Fatal(err)
			}
			if got := vmtest.ChecksumFile(t, path); got != was {
				t.Error("the file differs from what the device had last")
			}
			vmtest.Must(t, "e2fsck", "-fn", path)
			sameFile(t, neighbour, image(5<<20, 99))
		})
	}
}

// rowsOf prints a layout as dmsetup's rows of linear targets on disk.
func rowsOf(l extents.Layout, disk string) string {
	var b strings.Builder
	for _, e := range l.Extents {
		fmt.Fprintf(&b, "%d %d linear %s %d\n", e.Logical/512, e.Length/512, disk, e.Physical/512)
	}
	return b.String()
}
