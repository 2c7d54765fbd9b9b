//go:build vmtest

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"dmloop/extents"
	"dmloop/internal/vmtest"
)

// A mapping that lies where another one is, made behind dmloop's back.
func TestFullOverlap(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "8M")
	table := expect(t, 0, "table", image).Stdout
	r := vmtest.RunInput(t, table, "dmsetup", "create", "-u", "DMLOOP-00112233445566778899aabbccddeeff-thief", "thief")
	if r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	defer vmtest.DmsetupRemove(t, "thief")
	before := trace(t, image)
	if r := expect(t, 5, "map", "--no-guard", image); !strings.Contains(r.Stderr, "(overlap)") || !strings.Contains(r.Stderr, "thief") {
		t.Errorf("%s", r.Stderr)
	}
	if r := expect(t, 3, "check", "--json", image); !strings.Contains(r.Stdout, `"rule": "overlap",
          "offset": 0,
          "length": 8388608`) {
		t.Errorf("%s", r.Stdout)
	}
	if after := trace(t, image); after != before {
		t.Errorf("the file was\n%s\nand is\n%s", before, after)
	}
	// It is listed, as what nobody has a record of, and can be removed.
	if r := expect(t, 0, "list", "--raw", "-n", "-o", "NAME,STATE"); r.Stdout != "thief stale\n" {
		t.Errorf("%q", r.Stdout)
	}
	expect(t, 0, "unmap", "thief")
	expect(t, 0, "map", "--no-guard", image)
	expect(t, 0, "unmap", image)
	nothingLeft(t, image)
}

// The host device shrinks under its file system: the middle of the image is beyond
// its end, the first and the last pages can still be read.
func TestFullOutOfRange(t *testing.T) {
	h := newHost(t, hostKind{"", "ext4", []string{"-b", "4096", "-O", "^has_journal"}}, "linear")
	image := h.path("image.img")
	shell(t, h.dir, "truncate -s 8M image.img")
	// The file system ends at the border while these two are written.
	vmtest.Must(t, "umount", h.dir)
	vmtest.Must(t, "resize2fs", "-f", h.dev, fmt.Sprintf("%ds", border))
	vmtest.Must(t, "mount", h.dev, h.dir)
	for _, at := range []string{"0", "127"} { // of 64 KiB blocks
		shell(t, h.dir, "dd if=/dev/urandom of=image.img conv=notrunc bs=64K count=1 status=none seek="+at)
	}
	vmtest.Must(t, "sync")
	vmtest.Must(t, "resize2fs", h.dev)
	h.fillExcept(t, border*512, hostSize*512)
	shell(t, h.dir, "dd if=/dev/urandom of=image.img conv=notrunc bs=64K count=126 status=none seek=1; sync image.img")
	vmtest.Must(t, "sync")
	pieces := filefrag(t, image)
	for i, e := range pieces {
		if inside := e.Physical < border*512; len(pieces) < 3 || inside != (i == 0 || i == len(pieces)-1) {
			t.Fatalf("not as wanted: %+v", pieces)
		}
	}
	table := vmtest.Must(t, "dmsetup", "table", "host")
	first, _, _ := strings.Cut(table, "\n")
	reload := func(text string) {
		t.Helper()
		if r := vmtest.RunInput(t, text, "dmsetup", "load", "host"); r.Code != 0 {
			t.Error(r.Stderr)
		}
		vmtest.Must(t, "dmsetup", "suspend", "--noflush", "--nolockfs", "host")
		vmtest.Must(t, "dmsetup", "resume", "host")
	}
	reload(first + "\n")
	defer reload(table)
	// Its content cannot be read, so this is judged without the usual trace.
	r := expect(t, 3, "check", "--json", image)
	from, to := pieces[1].Logical, pieces[len(pieces)-1].Logical
	if want := fmt.Sprintf(`"bytes %d to %d: they lie beyond the end of the host device host, which has %d sectors"`, from, to-1, border); !strings.Contains(r.Stdout, want) {
		t.Errorf("%s", r.Stdout)
	}
	r = expect(t, 3, "map", "--no-guard", image)
	if !strings.Contains(r.Stderr, "(out-of-range)") {
		t.Errorf("%s", r.Stderr)
	}
	nothingLeft(t, image)
}

// Hosts on which nothing can be mapped, each named.
func TestFullHostsThatCannotLend(t *testing.T) {
	t.Run("mounted straight from a disk", func(t *testing.T) {
		disk := vmtest.Disk(t, 0)
		vmtest.Mkfs(t, "ext4", disk)
		h := &host{dir: vmtest.Mount(t, disk)}
		provoke(t, h, []provoked{{"ext4", kib64, extents.MountedDirectly, whole, 0, 0, ""}})
		// create and provision work there all the same.
		expect(t, 0, "create", h.path("image.img"), "1M")
	})
	t.Run("mounted read-only", func(t *testing.T) {
		h := newHost(t, ext4Host, "shim")
		image := h.image(t, "image.img", "1M")
		vmtest.Must(t, "mount", "-o", "remount,ro", h.dir)
		refused(t, image, provoked{rule: extents.Unpinnable})
	})
	t.Run("mounted without its journal", func(t *testing.T) {
		h := newHost(t, ext4Host, "shim")
		image := h.image(t, "image.img", "1M")
		vmtest.Must(t, "chattr", "+i", image) // then nothing has to be written to pin it
		vmtest.Must(t, "umount", h.dir)
		vmtest.Must(t, "mount", "-o", "ro,noload", h.dev, h.dir)
		refused(t, image, provoked{rule: extents.UnsupportedFS})
		h.remount(t)
		vmtest.Must(t, "chattr", "-i", image)
	})
	t.Run("tmpfs", func(t *testing.T) {
		h := &host{dir: vmtest.Mount(t, "none", "-t", "tmpfs")}
		provoke(t, h, []provoked{{"tmpfs", kib64, extents.UnsupportedFS, whole, 0, 0, ""}})
		if r := cli("create", h.path("image.img"), "1M"); r.Code != 3 || !strings.Contains(r.Stderr, "tmpfs") {
			t.Errorf("create: exit code %d\n%s", r.Code, r.Stderr)
		}
	})
	t.Run("overlay", func(t *testing.T) {
		base := vmtest.Mount(t, "none", "-t", "tmpfs")
		shell(t, base, "mkdir l u w; head -c 64K /dev/urandom >l/lower")
		h := &host{dir: vmtest.Mount(t, "none", "-t", "overlay", "-o",
			fmt.Sprintf("lowerdir=%s/l,upperdir=%[1]s/u,workdir=%[1]s/w", base))}
		provoke(t, h, []provoked{{"upper", kib64, extents.UnsupportedFS, whole, 0, 0, ""}})
		refused(t, h.path("lower"), provoked{rule: extents.UnsupportedFS})
	})
	for _, old := range []string{"ext2", "ext3"} {
		t.Run(old, func(t *testing.T) {
			dev := stacks["shim"](t)
			vmtest.Must(t, "mke2fs", "-q", "-F", "-t", old, dev)
			h := &host{dir: vmtest.Mount(t, dev, "-t", old)}
			provoke(t, h, []provoked{{old, kib64, extents.UnsupportedFS, whole, 0, 0, ""}})
		})
	}
	t.Run("ext4 without extents", func(t *testing.T) {
		h := newHost(t, hostKind{"", "ext4", []string{"-b", "4096", "-O", "^extent,^64bit"}}, "shim")
		provoke(t, h, []provoked{{"indirect", kib64, extents.Indirect, whole, 0, 0, ""}})
	})
	t.Run("inline data", func(t *testing.T) {
		h := newHost(t, hostKind{"", "ext4", []string{"-b", "4096", "-I", "256", "-O", "inline_data"}}, "shim")
		provoke(t, h, []provoked{{"inline", "echo small >f; sync f", extents.Inline, 0, anyLength, 0, ""}})
	})
	t.Run("btrfs", func(t *testing.T) {
		h := newHost(t, hostKind{"", "btrfs", nil}, "shim")
		provoke(t, h, []provoked{
			{"copy on write", kib64, extents.BtrfsCOW, whole, anyLength, 0, ""},
			{"not sealed", "touch f; chattr +C f; head -c 1M /dev/urandom >f; sync f", extents.Unsealed, whole, anyLength, 0, ""},
			{"compressed", "touch f; chattr +c f; yes | head -c 1M >f; sync f", extents.Encoded, 0, 1 << 20, 0, ""},
			{"may be compressed", "touch f; chattr +c f; yes | head -c 1M >f; sync f", extents.Compressed, 0, anyLength, 0, ""},
			{"snapshot", "btrfs -q subvolume create s; touch s/f; chattr +C s/f; head -c 1M /dev/urandom >s/f; sync s/f; btrfs -q subvolume snapshot s t; ln -s s/f f; sync",
				extents.Shared, 0, 1 << 20, 0, "btrfs -q subvolume delete s t"},
		})
	})
	t.Run("btrfs with two copies", func(t *testing.T) {
		h := newHost(t, hostKind{"", "btrfs", []string{"-d", "dup"}}, "shim")
		provoke(t, h, []provoked{{"dup", "touch f; chattr +C f; head -c 1M /dev/urandom >f; sync f", extents.BtrfsProfile, whole, anyLength, 0, ""}})
	})
	t.Run("a target that cannot be looked through", func(t *testing.T) {
		for _, target := range []string{"linear %s 0", "snapshot-origin %s", "delay %s 0 0", "flakey %s 0 60 0"} {
			name, _, _ := strings.Cut(target, " ")
			t.Run(name, func(t *testing.T) {
				disk := smallDisk(t, 0)
				dev := vmtest.DmsetupCreate(t, "host", fmt.Sprintf("0 %d "+target+"\n", hostSize, disk))
				vmtest.Mkfs(t, "ext4", dev)
				h := &host{dir: vmtest.Mount(t, dev)}
				if name == "linear" {
					shell(t, h.dir, kib64)
					expect(t, 0, "check", h.path("f"))
					return
				}
				provoke(t, h, []provoked{{name, kib64, extents.UnresolvableStack, whole, 0, 0, ""}})
			})
		}
	})
	t.Run("on a shim over such a target", func(t *testing.T) {
		below := vmtest.DmsetupCreate(t, "below", fmt.Sprintf("0 %d snapshot-origin %s\n", hostSize, vmtest.Disk(t, 0)))
		vmtest.Mkfs(t, "ext4", below)
		worksOnShim(t, below)
	})
}

// File systems on several devices, where an address does not say on which.
func TestFullSeveralDevices(t *testing.T) {
	t.Run("f2fs", func(t *testing.T) {
		a, b := smallDisk(t, 0), smallDisk(t, 1)
		vmtest.Mkfs(t, "f2fs", a, "-c", b)
		h := &host{dir: vmtest.Mount(t, a)}
		provoke(t, h, []provoked{{"f2fs", kib64, extents.MultiDevice, whole, 0, 0, ""}})
	})
	t.Run("btrfs", func(t *testing.T) {
		a, b := smallDisk(t, 0), smallDisk(t, 1)
		vmtest.Mkfs(t, "btrfs", a, "-m", "single", "-d", "single", b)
		h := &host{dir: vmtest.Mount(t, a)}
		provoke(t, h, []provoked{{"btrfs", kib64, extents.MultiDevice, whole, 0, 0, ""}})
		shell(t, h.dir, kib64)
		if r := expect(t, 3, "check", h.path("f")); strings.Count(r.Stdout, "(multi-device)") != 1 {
			t.Errorf("said more than once:\n%s", r.Stdout)
		}
	})
}

// dm-crypt under the file system: refused by name; with a shim on top it works.
func TestQemuCrypt(t *testing.T) {
	key := strings.Repeat("00", 32)
	crypt := vmtest.DmsetupCreate(t, "crypt", fmt.Sprintf("0 %d crypt aes-xts-plain64 %s 0 %s 0\n", hostSize, key, vmtest.Disk(t, 0)))
	vmtest.Mkfs(t, "ext4", crypt)
	h := &host{dir: vmtest.Mount(t, crypt)}
	provoke(t, h, []provoked{{"crypt", kib64, extents.UnresolvableStack, whole, 0, 0, ""}})
	vmtest.Umount(t, h.dir)
	worksOnShim(t, crypt)
}

// worksOnShim maps an image of the file system on a device, with a shim in between.
func worksOnShim(t *testing.T, below string) {
	t.Helper()
	expect(t, 0, "shim", below, "host")
	defer vmtest.DmsetupRemove(t, "host")
	h := &host{dir: vmtest.Mount(t, "/dev/mapper/host")}
	image := h.image(t, "image.img", "4M")
	dev := mapIt(t, image, "image")
	wrote := fill(t, dev, 4<<20, 7)
	expect(t, 0, "unmap", "image")
	if got := vmtest.ChecksumFile(t, image); got != wrote {
		t.Error("the file does not hold what was written")
	}
	vmtest.Umount(t, h.dir)
}

// A suspended host answers nobody; dmloop must not hang for ever, nor go on.
func TestFullSuspendedHost(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "1M")
	vmtest.Must(t, "sync")
	vmtest.Must(t, "dmsetup", "suspend", "--noflush", "--nolockfs", "host")
	cmd := command(t, "dmloop", "check", image)
	out := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(out.String(), "(unresolvable-stack)") {
			t.Errorf("%v\n%s", err, out)
		}
		vmtest.Must(t, "dmsetup", "resume", "host")
	case <-time.After(3 * time.Second): // the kernel makes it wait: that is the file system's right
		vmtest.Must(t, "dmsetup", "resume", "host")
		if err := <-done; err != nil {
			t.Errorf("after the resume: %v\n%s", err, out)
		}
	}
}

// Why no image on f2fs with checkpoint=disable is mapped is shown by a copy of the disk as a power
// cut would leave it. The rule goes when checkpoints are back.
func TestHostWithoutCheckpoints(t *testing.T) {
	h := newHost(t, f2fsHost, "shim")
	image := h.image(t, "image.img", "1M")
	vmtest.Must(t, "sync")
	vmtest.Must(t, "mount", "-o", "remount,checkpoint=disable:100%", h.dir)
	shell(t, h.dir, "head -c 64K /dev/urandom >since; sync since; sync -f .")
	cut := vmtest.Disk(t, 1)
	vmtest.Must(t, "dd", "if="+h.dev, "of="+cut, "bs=1M", "iflag=direct", "conv=fsync", "status=none")
	after := vmtest.Mount(t, cut)
	if _, err := os.Stat(after + "/since"); !os.IsNotExist(err) {
		t.Errorf("what was synced is there after the cut (%v): the rule is for nothing", err)
	}
	if _, err := os.Stat(after + "/image.img"); err != nil {
		t.Error(err)
	}
	refused(t, image, provoked{rule: extents.UnsupportedFS})
	if r := cli("map", image); !strings.Contains(r.Stderr, "hint: run: mount -o remount,checkpoint=enable "+h.dir) {
		t.Errorf("map says %s", r.Stderr)
	}
	vmtest.Must(t, "mount", "-o", "remount,checkpoint=enable", h.dir)
	mappable(t, f2fsHost, image)
}
