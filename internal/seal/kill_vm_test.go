//go:build vmtest

package seal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/vmtest"
)

// childEnv names the step that a child process of this test does: "seal" or
// "unseal", on the file named in imageEnv, on the file system in fstypeEnv.
const (
	childEnv  = "DMLOOP_TEST_SEAL"
	imageEnv  = "DMLOOP_TEST_IMAGE"
	fstypeEnv = "DMLOOP_TEST_FSTYPE"
)

// child does one step and returns the exit code. It stays on one thread, since
// strace counts system calls by thread.
func child() int {
	runtime.LockOSThread()
	f, err := os.OpenFile(os.Getenv(imageEnv), os.O_RDWR, 0)
	if err == nil {
		h := host{fstype: os.Getenv(fstypeEnv)}
		if os.Getenv(childEnv) == "seal" {
			_, err = Seal(f, h.options(f))
		} else {
			err = Unseal(f, h.bare())
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// calls are the system calls of sealing that matter, those that change the file
// or make changes durable, and two that read.
var calls = []string{"fsetxattr", "fremovexattr", "openat", "unlinkat", "syncfs", "fallocate", "pwrite64", "ftruncate", "fsync", "pread64", "fadvise64", "ioctl", "fcntl"}

// Seal and unseal are killed at every system call; what is left is finished both
// ways, also in a copy that lost its attributes and is said to be sealed.
func TestLongKillAtEverySystemCall(t *testing.T) {
	eachHost(t, func(t *testing.T, h host) { h.killEverywhere(t, 1) })
}

// The same on what User Mode Linux does not have; at one call of five, unless all are asked
// for.
func TestQemuKillExFAT(t *testing.T) {
	stride := 5
	if os.Getenv("DMLOOP_EVERYTHING") != "" {
		stride = 1
	}
	for _, k := range hosts {
		if k.fstype != "exfat" && k.fstype != "ntfs3" || !vmtest.HasFilesystem(t, k.fstype) {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			disk := vmtest.Disk(t, 0)
			vmtest.Mkfs(t, k.fstype, disk, k.mkfs...)
			dir := vmtest.Mount(t, disk, vmtest.MountOptions(k.fstype)...)
			h := host{t, k.fstype, disk, dir, k.blockSize(t, dir)}
			h.killEverywhere(t, stride)
		})
	}
}

// killEverywhere kills seal and unseal at one of stride calls of each kind.
func (h host) killEverywhere(t *testing.T, stride int) {
	size := 9 * 4096
	if h.block < 4096 {
		size = 9*4096 + 1024*int(h.block/1024)
	}
	for _, step := range []string{"seal", "unseal"} {
		points := 0
		for _, call := range calls {
			for n := 1; ; n += stride {
				path := h.create("image", int64(size), 3)
				want := image(size, 3)
				if step == "unseal" {
					f := h.open(path)
					r := h.seal(f)
					want = image(size, 4)
					h.writeRaw(h.shown(f, r), want)
					f.Close()
				}
				killed := h.runKilled(step, path, fmt.Sprintf("%s:signal=KILL:when=%d", call, n))
				if killed {
					points++
					h.finish(path, want, fmt.Sprintf("%s killed at %s %d", step, call, n))
				}
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				os.Remove(path + IntentSuffix)
				if !killed {
					break
				}
			}
		}
		t.Logf("%s: %d points", step, points)
		if points < 15/stride {
			t.Errorf("%s: only %d points: is strace killing?", step, points)
		}
	}
}

// runKilled runs a step in a child under strace and tells whether it was killed.
func (h host) runKilled(step, path, inject string) bool {
	h.t.Helper()
	cmd := exec.Command("strace", "-f", "-o", "/dev/null", "-e", "inject="+inject, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+step, imageEnv+"="+path, fstypeEnv+"="+h.fstype)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	if s := err.Error(); !strings.Contains(s, "killed") && !strings.Contains(s, "137") {
		h.t.Fatalf("%s with %s: %v\n%s", step, inject, err, out)
	}
	return true
}

// elsewhere reports whether a sealed copy lies so that its prologue is too short.
func (h host) elsewhere(f *os.File, r Record) bool {
	h.t.Helper()
	l, err := h.layout(f)()
	if err != nil {
		h.t.Fatal(err)
	}
	_, err = SwapPhysical(l, r)
	var outside *SlotOutsideError
	return errors.As(err, &outside)
}

// finish recovers a half-way image by sealing and by unsealing it, and the same
// with copies that have no attributes.
func (h host) finish(path string, want []byte, what string) {
	h.t.Helper()
	for _, how := range []string{"seal", "unseal"} {
		for _, attributes := range []bool{true, false} {
			copied := filepath.Join(h.dir, "copy")
			if err := os.WriteFile(copied, nil, 0o600); err != nil {
				h.t.Fatal(err)
			}
			if h.fstype == "btrfs" {
				vmtest.Must(h.t, "chattr", "+C", copied)
			}
			args := []string{"cp", "--sparse=never", "--reflink=never", path, copied}
			if attributes {
				args = append(args, "--preserve=xattr")
			}
			vmtest.Must(h.t, args...)
			if _, err := os.Lstat(path + IntentSuffix); err == nil && attributes {
				vmtest.Must(h.t, "cp", path+IntentSuffix, copied+IntentSuffix)
			}
			f, err := os.OpenFile(copied, os.O_RDWR, 0)
			if err != nil {
				h.t.Fatal(err)
			}
			if err := Adopt(f); err != nil && refusedBy(err) != extents.Unsealed {
				h.t.Fatalf("%s, then a copy (attributes %v): %v", what, attributes, err)
			}
			if how == "seal" {
				r, err := Seal(f, h.options(f))
				if err != nil {
					h.t.Fatalf("%s, then %s of a copy (attributes %v): %v", what, how, attributes, err)
				}
				if h.elsewhere(f, r) { // as map says: unseal it and seal it again
					if err := Unseal(f, h.bare()); err != nil {
						h.t.Fatal(err)
					}
					r = h.seal(f)
				}
				if !bytes.Equal(h.raw(h.shown(f, r)), want) {
					h.t.Fatalf("%s, then %s (attributes %v): other content", what, how, attributes)
				}
			}
			if err := Unseal(f, h.bare()); err != nil {
				h.t.Fatalf("%s, then %s and unseal (attributes %v): %v", what, how, attributes, err)
			}
			sameFile(h.t, copied, want)
			noAttribute(h.t, copied)
			if err := f.Close(); err != nil {
				h.t.Fatal(err)
			}
			if err := os.Remove(copied); err != nil {
				h.t.Fatal(err)
			}
		}
	}
}
