//go:build vmtest

package backing

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"dmloop/extents"
	"dmloop/internal/vmtest"
)

// TestNewZeroByDisk has a disk that can write zeros by itself, and a kernel that
// passes FALLOC_FL_WRITE_ZEROES on to it: the zeros must not go over the bus.
func TestNewZeroByDisk(t *testing.T) {
	disk := zeroingDisk(t, 400)
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			vmtest.Mkfs(t, fs, disk)
			dir := vmtest.Mount(t, disk)
			soil(t, dir, 64)
			start := time.Now()
			vmtest.Must(t, "dd", "if=/dev/zero", "of="+filepath.Join(dir, "dd"), "bs=4M", "count=8", "oflag=direct", "conv=fsync", "status=none")
			byHand := time.Since(start)
			shell(t, dir, "rm dd; sync -f .")

			path := filepath.Join(dir, "image")
			const size = 256 << 20
			start = time.Now()
			if err := Create(context.Background(), path, size, Options{}); err != nil {
				t.Fatal(err)
			}
			took := time.Since(start)
			t.Logf("Create of %d MiB took %v, dd of 32 MiB %v", size>>20, took, byHand)
			if got := flags(t, path); got != "" {
				t.Errorf("filefrag prints %q", got)
			}
			vmtest.Must(t, "cmp", "-n", strconv.Itoa(size), path, "/dev/zero")
			onDisk(t, path, disk)

			allZeroed(t, filepath.Join(dir, "zeroed"))
			sparse, sum := sick(t, host{fs: "ext4"}, dir)
			if _, err := provisionAt(context.Background(), sparse, Options{}); err != nil {
				t.Error(err)
			}
			onDisk(t, sparse, disk)
			vmtest.Must(t, "sh", "-c", "echo 3 >/proc/sys/vm/drop_caches")
			if vmtest.ChecksumFile(t, sparse) != sum {
				t.Error("Provision changed the content")
			}
		})
	}
}

// zeroingDisk makes a disk of scsi_debug's, in memory, that writes zeros by itself.
func zeroingDisk(t *testing.T, mib int) string {
	t.Helper()
	vmtest.RequireGuest(t)
	vmtest.Must(t, "modprobe", "sd_mod")
	vmtest.Must(t, "modprobe", "scsi_debug", "delay=0", "lbprz=1", "lbpws=1", "dev_size_mb="+strconv.Itoa(mib))
	t.Cleanup(func() { vmtest.Must(t, "modprobe", "-r", "scsi_debug") })
	for range 100 {
		if found, _ := filepath.Glob("/sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*"); len(found) == 1 {
			disk := filepath.Join("/dev", filepath.Base(found[0]))
			if _, err := os.Stat(disk); err == nil {
				limit, err := os.ReadFile(filepath.Join(found[0], "queue/write_zeroes_unmap_max_hw_bytes"))
				if err != nil || strings.TrimSpace(string(limit)) == "0" {
					t.Fatalf("premise: the disk cannot write zeros by itself: %q, %v", limit, err)
				}
				return disk
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("no disk of scsi_debug's appeared")
	return ""
}

// allZeroed fails the test unless the disk takes over the zeroing of a whole new file.
func allZeroed(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 16 << 20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	w, err := newWriter(f, writeMode{}, func() error { return nil }, func(extents.Bytes) {})
	if err != nil {
		t.Fatal(err)
	}
	left, err := w.zeroByDisk(context.Background(), []stretch{{0, size}})
	if err != nil || len(left) > 0 {
		t.Errorf("left to write by hand: %v, %v", left, err)
	}
	if err := w.close(); err != nil {
		t.Error(err)
	}
}
