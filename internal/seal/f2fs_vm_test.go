//go:build vmtest

package seal

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/internal/swap"
	"dmloop/internal/vmtest"
)

// A pinned f2fs file is sealed without losing its pin.
func TestPinnedF2FS(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "f2fs", disk)
	h := host{t, "f2fs", disk, vmtest.Mount(t, disk), 4096}
	for i, size := range []int64{2 << 20, 3<<20 + 4096, 6<<20 - 4096} {
		path := filepath.Join(h.dir, fmt.Sprintf("image%d", i))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		f := h.open(path)
		vmtest.Must(t, "f2fs_io", "pinfile", "set", path)
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(image(int(size), 1), 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		before, err := h.layout(f)()
		if err != nil {
			t.Fatal(err)
		}
		r := h.seal(f)
		if out := vmtest.Must(t, "f2fs_io", "pinfile", "get", path); !strings.Contains(out, ": pinned") {
			t.Errorf("sealed: %s", out)
		}
		after, err := h.layout(f)()
		if err != nil || after.Extents[0].Physical != before.Extents[0].Physical {
			t.Errorf("sealing moved the image: %v, %v, was %v", after, err, before)
		}
		if !bytes.Equal(h.raw(h.shown(f, r)), image(int(size), 1)) {
			t.Error("the device shows something else")
		}
		h.claim(f)
		if !bytes.Equal(h.raw(h.shown(f, r)), image(int(size), 1)) {
			t.Error("the device shows something else when claimed")
		}
		if err := swap.Release(f); err != nil {
			t.Fatal(err)
		}
		t.Logf("after swapoff: %s", vmtest.Must(t, "f2fs_io", "pinfile", "get", path))
		if err := Unseal(f, h.bare()); err != nil {
			t.Fatal(err)
		}
		sameFile(t, path, image(int(size), 1))
		// Unsealing what was sealed and never claimed: it is pinned still.
		if vmtest.Run(t, "f2fs_io", "pinfile", "set", path).Code == 0 {
			h.seal(f)
			if err := Unseal(f, h.bare()); err != nil {
				t.Fatal(err)
			}
			sameFile(t, path, image(int(size), 1))
		}
	}
}
