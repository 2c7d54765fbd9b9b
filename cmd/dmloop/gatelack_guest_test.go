//go:build vmtest

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

// lackVariable is what this guest's kernel was started without, in the words that dmloop has
// for it; make test-gate sets it, and the kernel's parameters.
const lackVariable = "DMLOOP_GATE_LACK"

// TestGateFallback maps where there can be no gate in the kernel, and where there can: what
// holds the image is the next best thing, and why is said in one sentence.
func TestGateFallback(t *testing.T) {
	withGate(t)
	lack := os.Getenv(lackVariable)
	uml := vmtest.Kernel(t) == "uml"
	if uml {
		lack = "the kernel has no BTF"
	}
	if r := expect(t, 0, "version"); !strings.Contains(r.Stdout, lack) || (lack == "") != strings.Contains(r.Stdout, "gate bpf\n") {
		t.Errorf("version: %s", r.Stdout)
	}
	for _, kind := range []hostKind{ext4Host, xfsHost} {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			image := h.image(t, "image.img", "4M")
			want := map[bool]string{true: "bpf kernel", false: "none kernel"}[lack == ""]
			switch {
			case lack == "" || kind.fstype == "ext4":
			case uml:
				expect(t, 3, "map", image)
				return
			default:
				want = "fanotify guarded"
			}
			dmloopOK(t, "map", image)
			if r := expect(t, 0, "list", "--raw", "--noheadings", "-o", "GATE,GRADE,GATEWHY", "image"); !strings.HasPrefix(r.Stdout, want) ||
				!strings.Contains(strings.ReplaceAll(r.Stdout, "\\x20", " "), lack) {
				t.Errorf("list: %s, want %s and %q", r.Stdout, want, lack)
			}
			if r := dmloop(t, "map", "--gate=bpf", "--no-guard", h.image(t, "other.img", "4M"), "other"); lack != "" && (r.Code != 8 || !strings.Contains(r.Stderr, lack)) {
				t.Errorf("map --gate=bpf: exit code %d\n%s", r.Code, r.Stderr)
			} else if lack == "" {
				expect(t, 0, "unmap", "other")
			}
			expect(t, 0, "unmap", "image")
		})
	}
}

// TestQemuGateMountsItsPlace maps where nobody has mounted bpffs.
func TestQemuGateMountsItsPlace(t *testing.T) {
	withGate(t)
	if err := unix.Unmount("/sys/fs/bpf", 0); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "4M")
	dmloopOK(t, "map", "--no-guard", "--gate=bpf", image)
	refusedTo(t, "cat "+image)
	expect(t, 0, "unmap", "image")
	if !strings.Contains(vmtest.Must(t, "cat", "/proc/mounts"), " /sys/fs/bpf bpf ") {
		t.Error("bpffs is not mounted")
	}
}

// TestQemuGateTaintsNothing: an image that the pin alone holds, or the gate in the kernel,
// needs no permission events, which newer kernels take amiss.
func TestQemuGateTaintsNothing(t *testing.T) {
	withGate(t)
	// Another test may have tainted the kernel: so what the guard asks for is looked at as well.
	before := vmtest.Must(t, "cat", "/proc/sys/kernel/tainted")
	said := strings.Count(vmtest.Must(t, "dmesg"), "fanotify")
	for _, gate := range []string{"auto", "none"} {
		t.Run(gate, func(t *testing.T) {
			h := newHost(t, ext4Host, "shim")
			image := h.image(t, "image.img", "4M")
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			trace := filepath.Join(t.TempDir(), "trace")
			// It stays with the guard that map starts.
			strace := exec.Command("strace", "-f", "--seccomp-bpf", "-o", trace, "-e", "trace=fanotify_init,fanotify_mark", self, "map", "--gate="+gate, image)
			strace.Env = append(os.Environ(), roleVariable+"=dmloop")
			var said bytes.Buffer
			strace.Stdout, strace.Stderr = &said, &said
			if err := strace.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { t.Log(said.String()) })
			await(t, "a mapping that is watched", 2*time.Minute, func() bool {
				return cli("list", "--noheadings", "--raw", "-o", "STATE,GUARD", "image").Stdout == "healthy 1\n"
			})
			expect(t, 0, "verify", "image")
			expect(t, 0, "unmap", "image")
			endGuard(t, "TERM")
			if err := strace.Wait(); err != nil {
				t.Error(err)
			}
			calls := vmtest.Must(t, "cat", trace)
			if !strings.Contains(calls, "fanotify_init(") || strings.Contains(calls, "FAN_OPEN_PERM") {
				t.Errorf("the guard asks for permission events:\n%s", calls)
			}
		})
	}
	if now := vmtest.Must(t, "cat", "/proc/sys/kernel/tainted"); now != before {
		t.Errorf("tainted: %s, before %s", now, before)
	}
	if now := strings.Count(vmtest.Must(t, "dmesg"), "fanotify"); now != said {
		t.Error("the kernel says something of fanotify")
	}
}
