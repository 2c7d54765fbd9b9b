package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// againstLosetup compares making and removing a device of a one-extent image.
func (b *bed) againstLosetup() {
	defer b.host(b.disks[0])()
	file, other := b.path("image.img"), b.path("other.img")
	must(b.program, "create", file, "16M")
	must(b.program, "create", other, "16M")
	if table := must(b.program, "table", file); strings.Count(table, "\n") != 1 {
		check(fmt.Errorf("the image has more than one extent:\n%s", table))
	}
	loop := strings.TrimSpace(must("losetup", "-f"))
	both := func(options ...string) func() float64 {
		return func() float64 {
			_, up := timed(b.program, append([]string{"map", file}, options...)...)
			_, down := timed(b.program, "unmap", file)
			return up + down
		}
	}
	losetup := func() float64 {
		_, up := timed("losetup", "-f", other)
		_, down := timed("losetup", "-d", loop)
		return up + down
	}
	rounds := b.rounds
	b.rounds = 3 * rounds // short, and so noisy
	defer func() { b.rounds = rounds }()
	us, them := b.sample(both("--no-guard"), losetup)
	b.report(row{What: "map --no-guard + unmap / losetup -f + -d, one extent", Ours: us, Theirs: them, Unit: "ms", AtMost: true, Goal: 1.5})
	us, them = b.sample(func() float64 { _, ms := timed(b.program, "version"); return ms },
		func() float64 { _, ms := timed("losetup", "-f"); return ms })
	b.report(row{What: "for comparison: dmloop version / losetup -f", Ours: us, Theirs: them, Unit: "ms", AtMost: true})
}

// againstDD compares create with dd of zeros of the same size, on the disk and,
// where the kernel can use one, on a disk that writes zeros by itself.
func (b *bed) againstDD() {
	const size = 512 << 20
	if b.kernel == "uml" {
		b.createOn("disk", b.disks[0], size, 0.98)
	} else {
		b.createOn("disk in memory", b.disks[0], size, 0)
		b.createOn("disk", b.disks[2], size, 0.98)
	}
	if b.kernel == "new" {
		// Tiny writes and no delay: what is compared is the data sent.
		must("modprobe", "sd_mod")
		must("modprobe", "scsi_debug", "delay=0", "lbprz=1", "lbpws=1", "dev_size_mb=640")
		b.createOn("disk that zeroes by itself", scsiDebug(), size/2, 10)
		must("modprobe", "-r", "scsi_debug")
	}
}

// scsiDebug waits for the disk of the module of this name.
func scsiDebug() string {
	const glob = "/sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*"
	for range 100 {
		if found, _ := filepath.Glob(glob); len(found) == 1 {
			dev := "/dev/" + filepath.Base(found[0])
			if _, err := os.Stat(dev); err == nil {
				return dev
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	check(errors.New("no disk of scsi_debug appeared"))
	return ""
}

// createOn compares on a disk of whose blocks the first ones have been written:
// what the host of the guest does at a first write is not measured.
func (b *bed) createOn(name, dev string, size int64, goal float64) {
	must("dd", "if=/dev/zero", "of="+dev, "bs=4M", "oflag=direct", fmt.Sprintf("count=%d", 2*size>>22))
	defer b.host(dev)()
	file := b.path("image.img")
	rate := func(ms float64) float64 {
		must("rm", file)
		must("sync")
		return float64(size) / ms / 1000
	}
	for _, c := range []struct {
		what string
		conv []string
		goal float64
	}{
		{"create / dd oflag=direct, ", nil, goal},
		// create returns when the image is on the disk, dd does so only when told.
		{"create / dd oflag=direct conv=fsync, ", []string{"conv=fsync"}, 0},
	} {
		us, them := b.sample(
			func() float64 {
				_, ms := timed(b.program, "create", file, fmt.Sprint(size))
				return rate(ms)
			},
			func() float64 {
				_, ms := timed("dd", append(c.conv, "if=/dev/zero", "of="+file, "bs=4M", "oflag=direct", fmt.Sprintf("count=%d", size>>22))...)
				return rate(ms)
			})
		b.report(row{What: c.what + name, Ours: us, Theirs: them, Unit: "MB/s", Goal: c.goal})
	}
}
