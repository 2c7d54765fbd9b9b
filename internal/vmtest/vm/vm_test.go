package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestCpioIsReadByCpio(t *testing.T) {
	var archive bytes.Buffer
	arc := &cpioWriter{w: &archive}
	files := map[string]string{"dir/a": "", "dir/b": "one", "dir/longer-name": strings.Repeat("x", 4097)}
	if err := arc.add("dir", modeDir, nil); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := arc.add(name, modeProg, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := arc.close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cpio", "-id", "--quiet")
	cmd.Dir, cmd.Stdin = t.TempDir(), &archive
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(cmd.Dir, name))
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
}

func TestOrderFrom(t *testing.T) {
	const dep = `kernel/net/9p/9pnet.ko:
kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko kernel/fs/netfs.ko
kernel/net/9p/9pnet-virtio.ko: kernel/net/9p/9pnet.ko
kernel/fs/netfs.ko:
`
	const builtin = "kernel/drivers/virtio/virtio_pci.ko\n"
	got, err := orderFrom(dep, builtin, []string{"virtio_pci", "9pnet_virtio", "9p"})
	want := []string{"kernel/net/9p/9pnet.ko", "kernel/net/9p/9pnet-virtio.ko", "kernel/fs/netfs.ko", "kernel/fs/9p/9p.ko.xz"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := orderFrom(dep, builtin, []string{"nosuch"}); err == nil {
		t.Error("a module that does not exist is no error")
	}
}

func TestNewestVersion(t *testing.T) {
	names := []string{
		"linux-image-6.1.0-9-amd64", "linux-image-6.1.0-47-amd64", "linux-image-6.1.0-50-amd64-unsigned",
		"linux-image-6.1.0-48-rt-amd64", "linux-image-6.12.94+deb13-amd64", "linux-image-6.12.107+deb13-amd64",
		"linux-binary-6.19.14+deb13-amd64", "linux-binary-7.3.4+deb13-amd64", "linux-binary-7.10.1+deb13-amd64",
		"linux-binary-7.9.9+deb13-cloud-amd64", "linux-image-6.12.117+deb13-arm64", "linux-image-6.12.107+deb13-arm64-16k",
		"linux-image-6.12.117+deb13-arm64-unsigned", "linux-image-6.12.118+deb13-arm64-16k-dbg", "linux-image-6.12.118+deb13-rt-arm64",
	}
	for kernel, want := range map[string]string{
		Kernel61: "6.1.0-47-amd64", Kernel612: "6.12.107+deb13-amd64", KernelNew: "7.10.1+deb13-amd64",
		KernelArm64: "6.12.117+deb13-arm64", KernelArm64Pages16K: "6.12.107+deb13-arm64-16k",
	} {
		if got := newestVersion(names, sources[kernel].packages); got != want {
			t.Errorf("%s: %q, want %q", kernel, got, want)
		}
	}
}

func TestFaults(t *testing.T) {
	for line, fault := range map[string]bool{
		"[    1.0] BUG: kernel NULL pointer dereference, address: 0":        true,
		"[    1.0] kernel BUG at fs/ext4/inode.c:2700!":                     true,
		"[    1.0] WARNING: CPU: 0 PID: 1 at block/bdev.c:1 x+0x1/0x2":      true,
		"[    1.0] Oops: 0000 [#1] PREEMPT SMP":                             true,
		"[    1.0] general protection fault, probably for non-canonical":    true,
		"[  242.0] INFO: task dmloop:77 blocked for more than 120 seconds.": true,
		"[    1.0] Kernel panic - not syncing: Attempted to kill init!":     true,
		"[   99.0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [a:1]": false,
		"[    1.0] DEBUG: all is well":                                      false,
		"[    1.0] device-mapper: ioctl: 4.48.0 initialised":                false,
		"[    1.0] WARNING: clocksource: timekeeping watchdog on CPU0":      false,
	} {
		if got := len(Faults(line+"\n")) > 0; got != fault {
			t.Errorf("%q: fault %v", line, got)
		}
	}
}

func TestVerdict(t *testing.T) {
	one := Config{Kernel: KernelUML, Timeout: time.Second, Silence: 2 * time.Second, Commands: make([]Command, 1)}
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	good := verdictInput{ready: true, done: true, reported: 1}
	for _, c := range []struct {
		name  string
		ctx   context.Context
		allow bool
		in    func(*verdictInput)
		want  string // part of the problem, empty for none
	}{
		{"good", t.Context(), false, func(*verdictInput) {}, ""},
		{"hang", late, false, func(in *verdictInput) { in.done, in.reported = false, 0 }, "timed out after 1s, command 1 of 1"},
		{"silent", t.Context(), false, func(in *verdictInput) { in.done, in.silent, in.reported = false, true, 0 }, "said nothing for 2s, command 1 of 1"},
		{"panic", t.Context(), false, func(in *verdictInput) { in.done, in.reported = false, 0 }, "without an exit code of command 1"},
		{"death at boot", t.Context(), false, func(in *verdictInput) { in.ready, in.done, in.reported = false, false, 0 }, "died before its first command"},
		{"lost exit code", t.Context(), false, func(in *verdictInput) { in.reported = 0 }, "without an exit code"},
		{"process 1", t.Context(), false, func(in *verdictInput) { in.complaint = "no root" }, "process 1 failed: no root"},
		{"emulator", t.Context(), false, func(in *verdictInput) { in.runErr = errors.New("signal") }, "power off"},
		{"fault", t.Context(), false, func(in *verdictInput) { in.log = "BUG: x" }, "BUG: x"},
		{"fault allowed", t.Context(), true, func(in *verdictInput) { in.log = "BUG: x" }, ""},
	} {
		in, cfg := good, one
		cfg.AllowWarn = c.allow
		c.in(&in)
		err := verdict(c.ctx, cfg, in)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestKeepTime(t *testing.T) {
	said := filepath.Join(t.TempDir(), "said")
	// Without a handler the signal would end it; then it counts the interrupts.
	script := `sleep 0.5; n=0; trap 'n=$((n+1)); echo $n >"$1"' ALRM; while [ $n -lt 3 ]; do sleep 0.01; done`
	cmd := exec.Command("/bin/bash", "-c", script, "bash", said)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone, kept := make(chan struct{}), make(chan struct{})
	go func() { KeepTime(cmd.Process, gone); close(kept) }()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	close(gone)
	<-kept
	if got, err := os.ReadFile(said); err != nil || string(got) != "3\n" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pulse
		var got []string
		start := time.Now()
		note := func(what string) { got = append(got, fmt.Sprintf("%s %s", what, time.Since(start))) }
		go func() { // talks for a while
			for range 3 {
				time.Sleep(7 * time.Second)
				if _, err := p.through(io.Discard).Write([]byte("x")); err != nil {
					t.Error(err)
				}
			}
		}()
		ready := make(chan struct{})
		close(ready)
		wakes := 0
		p.watch(t.Context(), ready, 10*time.Second, func() {
			note("wake")
			if wakes++; wakes == 1 {
				time.AfterFunc(time.Second, p.beat)
			}
		}, func() { note("end") })
		if want := []string{"wake 31s", "wake 51s", "end 1m11s"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

func TestReadReportsRefusesOtherText(t *testing.T) {
	var got []Report
	keep := func(r Report) { got = append(got, r) }
	if err := readReports(strings.NewReader(`{"kind":"exit","command":1,"code":3}`+"\n"), keep); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0] != (Report{Kind: "exit", Command: 1, Code: 3}) {
		t.Errorf("got %+v", got)
	}
	if err := readReports(strings.NewReader("hello\n"), keep); err == nil {
		t.Error("text that is no report was accepted")
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	if got := tail("a\nb\nc\n", 2); got != "(1 lines left out)\nb\nc" {
		t.Errorf("%q", got)
	}
	if got := tail("a\nb\n", 2); got != "a\nb" {
		t.Errorf("%q", got)
	}
}

func TestFindPackedWantsAWholeKernel(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	elf, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{"xz", "zstd"} {
		cmd := exec.Command(tool, "-1", "-c")
		cmd.Stdin = bytes.NewReader(elf)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		image := slices.Concat([]byte("boot code \x28\xb5\x2f\xfd not packed"), packed, []byte("trailer"))
		if got, err := UnpackKernel(image); err != nil || !bytes.Equal(got, elf) {
			t.Errorf("%s: %d bytes, %v", tool, len(got), err)
		}
		if _, err := UnpackKernel(image[:len(image)/2]); err == nil {
			t.Errorf("%s: half an image was accepted", tool)
		}
	}
}

// The kernels of arm64 are not packed, and have nothing in them that looks so.
func TestPlainArm64(t *testing.T) {
	header := make([]byte, 64)
	if plainArm64(header) || plainArm64(header[:10]) {
		t.Error("zeros are taken for a kernel")
	}
	copy(header[56:], "ARMd")
	if !plainArm64(header) {
		t.Error("a kernel is not known by its header")
	}
}

// Packages of Debian 12 have files below /bin and /lib, which are links in a guest's root.
func TestUnpackMergedKeepsLinks(t *testing.T) {
	dir := t.TempDir()
	tree, root := filepath.Join(dir, "tree"), filepath.Join(dir, "root")
	for _, folder := range []string{tree + "/DEBIAN", tree + "/bin", root + "/usr/bin"} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	control := "Package: p\nVersion: 1\nArchitecture: arm64\nMaintainer: m <m@example.org>\nDescription: d\n"
	for path, text := range map[string]string{tree + "/DEBIAN/control": control, tree + "/bin/tool": "x"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	deb := filepath.Join(dir, "p.deb")
	if err := errors.Join(os.Symlink("usr/bin", root+"/bin"), command("dpkg-deb", "--root-owner-group", "-b", tree, deb), unpackMerged(deb, root)); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(root + "/usr/bin/tool"); err != nil || string(text) != "x" {
		t.Errorf("%q, %v", text, err)
	}
	if err := unpackMerged(filepath.Join(dir, "none.deb"), root); err == nil {
		t.Error("a package that is not there was unpacked")
	}
}

// A guest that has no loader says "no working init found" and nothing of why.
func TestFirstProgramIsStatic(t *testing.T) {
	dir := t.TempDir()
	source, archive := filepath.Join(dir, "main.go"), filepath.Join(dir, "archive")
	for path, text := range map[string]string{source: "package main\n\nfunc main() {}\n", archive: ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "static"), source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := writeInitramfs(filepath.Join(dir, "initrd"), archive, filepath.Join(dir, "static")); err != nil {
		t.Error(err)
	}
	if err := writeInitramfs(filepath.Join(dir, "initrd"), archive, "/bin/sh"); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("of a program with a loader: %v", err)
	}
}
