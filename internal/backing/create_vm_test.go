//go:build vmtest

package backing

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/vmtest"
)

func TestCreateOnHosts(t *testing.T) {
	for _, h := range hosts {
		t.Run(h.name, func(t *testing.T) {
			disk, dir := h.mount(t)
			soil(t, dir, 256)
			path := filepath.Join(dir, "image")
			const size = 64<<20 + 3*16384
			if err := Create(context.Background(), path, size, Options{}); err != nil {
				t.Fatal(err)
			}
			vmtest.Must(t, "cmp", "-n", "67121152", path, "/dev/zero")
			if got := flags(t, path); got != "" {
				t.Errorf("filefrag prints %q", got)
			}
			if n := vmtest.CountExtents(t, path); n > 8 {
				t.Errorf("%d extents on an empty file system", n)
			}
			if h.fs != "btrfs" { // its addresses are no disk addresses
				onDisk(t, path, disk)
			}
			// What the file says after a crash is what it said before.
			vmtest.Umount(t, dir)
			again := vmtest.Mount(t, disk)
			vmtest.Must(t, "cmp", "-n", "67121152", filepath.Join(again, "image"), "/dev/zero")
			attributes := vmtest.Must(t, "lsattr", filepath.Join(again, "image"))
			if noCOW := strings.Contains(strings.Fields(attributes)[0], "C"); noCOW != (h.fs == "btrfs") && h.fs != "f2fs" {
				t.Errorf("attributes are %s", attributes)
			}
			if h.fs == "f2fs" {
				if out := vmtest.Must(t, "f2fs_io", "pinfile", "get", filepath.Join(again, "image")); !strings.Contains(out, " pinned with 0 blocks moved") {
					t.Errorf("f2fs_io says %q", out)
				}
			}
		})
	}
}

// TestCreateInHeirs makes images in directories that hand down bad attributes.
func TestCreateInHeirs(t *testing.T) {
	t.Run("compression", func(t *testing.T) {
		_, dir := host{"", "btrfs", nil}.mount(t)
		shell(t, dir, "mkdir d; chattr +c d")
		if err := Create(context.Background(), filepath.Join(dir, "d/image"), 1<<20, Options{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("data journal", func(t *testing.T) {
		_, dir := host{"", "ext4", nil}.mount(t)
		shell(t, dir, "mkdir d; chattr +j d")
		if err := Create(context.Background(), filepath.Join(dir, "d/image"), 1<<20, Options{}); !hasProblem(err, extents.DataJournal) {
			t.Errorf("got %v", err)
		}
		isEmpty(t, filepath.Join(dir, "d"))
	})
}

func TestCreateWithoutSpace(t *testing.T) {
	for _, h := range hosts {
		t.Run(h.name, func(t *testing.T) {
			_, dir := h.mount(t)
			free := vmtest.Must(t, "df", "--output=avail", "-B1", dir)
			path := filepath.Join(dir, "image")
			if err := Create(context.Background(), path, 1<<40, Options{}); !isNoSpace(err) {
				t.Errorf("1 TiB: %v", err)
			}
			// The check beforehand passes, then somebody takes the space away.
			greedy := filepath.Join(dir, "greedy")
			taken := false
			err := Create(context.Background(), path, 128<<20, Options{Progress: func(_, _ extents.Bytes) {
				if !taken {
					taken = true
					vmtest.Run(t, "dd", "if=/dev/zero", "of="+greedy, "bs=1M", "oflag=direct", "status=none")
				}
			}})
			if err == nil {
				t.Log("all blocks were allocated before the first report")
			} else if !isENOSPC(err) {
				t.Errorf("space taken away: %v", err)
			} else if _, err := os.Lstat(path); err == nil {
				t.Error("half an image was left behind")
			}
			shell(t, dir, "rm -f greedy image; sync -f .")
			if h.fs == "ext4" {
				if now := vmtest.Must(t, "df", "--output=avail", "-B1", dir); now != free {
					t.Errorf("space is gone: %s were free, now %s", free, now)
				}
			}
		})
	}
}

func TestKilledCreateLeavesNothing(t *testing.T) {
	for _, h := range []host{hosts[0], hosts[2], hosts[4]} {
		t.Run(h.name, func(t *testing.T) {
			disk, dir := h.mount(t)
			path := filepath.Join(dir, "image")
			used := vmtest.Must(t, "df", "--output=used", "-B1", dir)
			const size = 32 * chunkSize
			killed := 0
			for at := 1; at <= 33; at++ {
				if !die(t, "create", path, size, at) {
					t.Fatalf("not killed at report %d", at)
				}
				killed++
				isGone(t, path)
				if at%11 == 0 { // and the power fails
					pullThePlug(t, dir)
					vmtest.Umount(t, dir)
					vmtest.Must(t, "mount", disk, dir)
					isGone(t, path)
				}
			}
			if killed < 30 {
				t.Errorf("killed only %d times", killed)
			}
			vmtest.Umount(t, dir)
			vmtest.Must(t, "mount", disk, dir)
			if now := vmtest.Must(t, "df", "--output=used", "-B1", dir); h.fs == "ext4" && now != used {
				t.Errorf("space is gone: %s were used, now %s", used, now)
			}
			if die(t, "create", path, size, 1000) {
				t.Error("killed in the end")
			}
			vmtest.Must(t, "cmp", "-n", "134217728", path, "/dev/zero")
		})
	}
}

func isGone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Fatalf("%s is there: %v", path, err)
	}
}
