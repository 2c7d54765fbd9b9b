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
			soil(t, dir)
			start := time.Now()
			vmtest.Must(t, "dd", "if=/dev/zero", "of="+filepath.Join(dir, "dd"), "bs=4M", "count=64", "oflag=direct", "conv=fsync", "status=none")
			byHand := time.Since(start)
			shell(t, dir, "rm dd; sync -f .")

			path := filepath.Join(dir, "image")
			const size = 256 << 20
			before, start := written(t, disk), time.Now()
			if err := Create(context.Background(), path, size, Options{}); err != nil {
				t.Fatal(err)
			}
			took, sent := time.Since(start), written(t, disk)-before
			t.Logf("Create took %v, dd %v: %.1f times as fast; %d bytes sent", took, byHand, byHand.Seconds()/took.Seconds(), sent)
			if sent > size/10 {
				t.Errorf("%d bytes were sent to the disk for %d bytes of zeros", sent, size)
			}
			if got := flags(t, path); got != "" {
				t.Errorf("filefrag prints %q", got)
			}
			vmtest.Must(t, "cmp", "-n", strconv.Itoa(size), path, "/dev/zero")
			onDisk(t, path, disk)

			sparse, sum := sick(t, host{fs: "ext4"}, dir)
			if _, err := Provision(context.Background(), sparse, Options{}); err != nil {
				t.Error(err)
			}
			if vmtest.ChecksumFile(t, sparse) != sum {
				t.Error("Provision changed the content")
			}
			onDisk(t, sparse, disk)
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

// written returns how many bytes have been written to a disk; zeros that it wrote
// by itself are counted as discards, if at all.
func written(t *testing.T, disk string) int64 {
	t.Helper()
	stat, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(disk), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	sectors, err := strconv.ParseInt(strings.Fields(string(stat))[6], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return sectors * 512
}
