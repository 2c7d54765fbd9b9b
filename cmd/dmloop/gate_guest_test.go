//go:build vmtest

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/internal/vmtest"
)

// others runs a command of somebody else's and reports whether it got through.
func others(t *testing.T, command string) (through bool, said string) {
	t.Helper()
	r := vmtest.Run(t, "sh", "-c", command)
	return r.Code == 0, r.Stdout + r.Stderr
}

func refusedTo(t *testing.T, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if through, said := others(t, c); through {
			t.Errorf("%s: went through\n%s", c, said)
		}
	}
}

// TestQemuGateHolds maps without a guard what only the gate in the kernel holds, and tries
// everything on it.
func TestQemuGateHolds(t *testing.T) {
	withGate(t)
	for _, kind := range []hostKind{xfsHost, ext4Host} {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			image := h.image(t, "image.img", "8M")
			content := vmtest.ChecksumFile(t, image)
			if r := expect(t, 0, "version"); !strings.Contains(r.Stdout, "gate bpf\n") {
				t.Errorf("version: %s", r.Stdout)
			}
			dev := dmloopOK(t, "map", "--no-guard", image)
			if r := expect(t, 0, "list", "--raw", "--noheadings", "--output", "PIN,GRADE,STATE,GATE", "image"); !strings.Contains(r.Stdout, "bpf kernel healthy bpf") {
				t.Errorf("list: %s", r.Stdout)
			}
			refusedTo(t, "cat "+image, "cp --reflink=always "+image+" "+h.dir+"/clone", "chattr -i "+image, "rm -f "+image, "mv "+image+" "+h.dir+"/x",
				"swapon "+image, "dmsetup remove image", "dmsetup wipe_table image", "echo 0 64 error | dmsetup load image", "dmsetup rename image other",
				"dmsetup remove_all; test ! -e /dev/mapper/image", "dmsetup wipe_table --noflush host", "dmsetup remove host",
				"dmsetup table host | sed 's/ [0-9]*$/ 8/' | dmsetup load host")
			if through, said := others(t, "dmsetup table host | dmsetup load host && dmsetup resume host && dmsetup suspend image && dmsetup resume image"); !through {
				t.Errorf("the same table: %s", said)
			}
			if r := expect(t, 0, "status", "image"); !strings.Contains(r.Stdout, "REFUSED") || !strings.Contains(r.Stdout, "dmsetup (process") {
				t.Errorf("status: %s", r.Stdout)
			}
			t.Log(expect(t, 0, "gate").Stdout)
			if got := vmtest.ChecksumFile(t, dev); got != content {
				t.Error("the device does not show the file's content")
			}
			wrote := fill(t, dev, 8<<20, 3)
			expect(t, 0, "verify", "image")
			expect(t, 0, "unmap", "image")
			if _, err := os.Stat("/sys/fs/bpf/dmloop"); err == nil {
				t.Error("the gate is in force without a mapping")
			}
			if got := vmtest.ChecksumFile(t, image); got != wrote {
				t.Error("the file does not hold what was written through the device")
			}
			vmtest.Must(t, "rm", image)
			h.check(t)
		})
	}
}

// dmloopOK runs the built program as a process of its own, which the gate has to let pass.
func dmloopOK(t *testing.T, args ...string) string {
	t.Helper()
	r := dmloop(t, args...)
	if r.Code != 0 {
		t.Fatalf("dmloop %v: %d\n%s", args, r.Code, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// TestQemuGateClear takes the gate away below a mapping.
func TestQemuGateClear(t *testing.T) {
	withGate(t)
	h := newHost(t, xfsHost, "shim")
	image := h.image(t, "image.img", "4M")
	dmloopOK(t, "map", "--no-guard", image)
	expect(t, 0, "gate", "--clear")
	if _, err := os.Stat("/sys/fs/bpf/dmloop"); err == nil {
		t.Error("the gate is there still")
	}
	if r := expect(t, 0, "list", "--raw", "--noheadings", "--output", "GRADE,STATE,REASON", "image"); !strings.HasPrefix(r.Stdout, "guarded weakened the\\x20gate") {
		t.Errorf("list: %s", r.Stdout)
	}
	vmtest.Must(t, "cat", image)
	expect(t, 0, "unmap", "image")
	// The last resort, without dmloop.
	dmloopOK(t, "map", "--no-guard", image)
	refusedTo(t, "cat "+image)
	vmtest.Must(t, "rm", "-r", "/sys/fs/bpf/dmloop")
	vmtest.Must(t, "sh", "-c", "cat "+image+" >/dev/null && dmsetup remove image && chattr -i "+image)
	expect(t, 0, "unmap", "image")
	vmtest.Must(t, "sh", "-c", "echo x >>"+filepath.Clean(image))
	h.check(t)
}
