//go:build vmtest

package image

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dmloop/extents"
	"dmloop/internal/vmtest"

	"golang.org/x/sys/unix"
)

// TestUsersAreFoundOut has a file used in every way and expects the lease to be
// refused, with the user's name where there is one.
func TestUsersAreFoundOut(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs", "btrfs", "f2fs"} {
		t.Run(fs, func(t *testing.T) {
			disk := vmtest.Disk(t, 0)
			vmtest.Mkfs(t, fs, disk)
			dir := vmtest.Mount(t, disk)
			shell(t, dir, megabyte)
			path := filepath.Join(dir, "f")
			img := openImage(t, path)
			sole := func(when, who string) {
				t.Helper()
				lease, err := AwaitSoleOpener(t.Context(), img.File(), Wait{})
				if err == nil {
					if err := lease.Release(); err != nil {
						t.Error(err)
					}
				}
				switch {
				case who == "" && err != nil:
					t.Errorf("%s: %v", when, err)
				case who != "" && (!isRule(err, extents.OpenElsewhere) || !strings.Contains(err.Error(), who)):
					t.Errorf("%s: %v, want open-elsewhere with %q", when, err, who)
				}
			}
			sole("alone", "")

			loop := strings.TrimSpace(vmtest.Must(t, "losetup", "-f", "--show", path))
			sole("under a loop device", loop)
			vmtest.Must(t, "losetup", "-d", loop)
			for vmtest.Must(t, "losetup", "-n", "-j", path) != "" {
				time.Sleep(10 * time.Millisecond) // it goes when its last user does
			}
			sole("without the loop device", "")

			// A running program is mapped and not open.
			shell(t, dir, "cp $(command -v sleep) program")
			program := exec.Command(filepath.Join(dir, "program"), "60")
			if err := program.Start(); err != nil {
				t.Fatal(err)
			}
			running := openImage(t, filepath.Join(dir, "program"))
			_, err := AwaitSoleOpener(t.Context(), running.File(), Wait{})
			if want := fmt.Sprintf("program (pid %d, mapped)", program.Process.Pid); !isRule(err, extents.OpenElsewhere) || !strings.Contains(err.Error(), want) {
				t.Errorf("as a running program: %v, want %s", err, want)
			}
			running.Close()
			program.Process.Kill()
			program.Wait()

			page := mapOnly(t, path)
			sole("mapped by this process", "somebody else")
			if err := unix.Munmap(page); err != nil {
				t.Fatal(err)
			}
			sole("unmapped", "")
		})
	}
}

// mapOnly maps the file and closes its descriptor.
func mapOnly(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	return page
}

func TestLeasesSwitchedOff(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "ext4", disk)
	dir := vmtest.Mount(t, disk)
	shell(t, dir, megabyte)
	img := openImage(t, filepath.Join(dir, "f"))
	vmtest.Must(t, "sh", "-c", "echo 0 >/proc/sys/fs/leases-enable")
	t.Cleanup(func() { vmtest.Must(t, "sh", "-c", "echo 1 >/proc/sys/fs/leases-enable") })
	lease, err := AwaitSoleOpener(t.Context(), img.File(), Wait{})
	if err == nil {
		lease.Release()
		t.Fatal("the lease was granted")
	}
	if isRule(err, extents.OpenElsewhere) {
		t.Errorf("no proof is not the same as somebody else: %v", err)
	}
}

// TestDirtyPagesAreSeen writes through a mapping, the way that DropCache cannot end.
func TestDirtyPagesAreSeen(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs", "btrfs", "f2fs"} {
		t.Run(fs, func(t *testing.T) {
			disk := vmtest.Disk(t, 0)
			vmtest.Mkfs(t, fs, disk)
			dir := vmtest.Mount(t, disk)
			shell(t, dir, megabyte)
			path := filepath.Join(dir, "f")
			img := openImage(t, path)
			if state, err := img.DropCache(t.Context()); err != nil || !state.Clean() || state.Cached != 0 {
				t.Fatalf("nobody uses it, but %+v, %v", state, err)
			}
			page := mapOnly(t, path)
			defer unix.Munmap(page)
			page[0]++
			state, err := img.CacheState(t.Context())
			if err != nil || state.Clean() || len(state.Problems()) != 1 {
				t.Errorf("after a store: %+v, %v", state, err)
			}
			if state.Exact != (vmtest.Kernel(t) != "uml" && vmtest.Kernel(t) != "6.1") {
				t.Errorf("cachestat is in Linux since 6.5, but %+v on %s", state, vmtest.Kernel(t))
			}
			if state, err = img.DropCache(t.Context()); err != nil || state.Cached == 0 {
				t.Errorf("a mapped page was dropped: %+v, %v", state, err)
			}
		})
	}
}
