//go:build vmtest

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

// attacker tries to open an image and to change the table of a mapping's device, again and
// again, as other programs. It writes a line when something gets through.
func attacker(t *testing.T, image, name string) (through func() string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "through")
	script := fmt.Sprintf(`while :; do
	cat '%[1]s' >/dev/null 2>&1 && echo opened >>'%[2]s'
	echo 0 8 error | dmsetup load %[3]s 2>/dev/null && echo loaded >>'%[2]s'
	echo try >>'%[2]s.tries'
done`, image, log, name)
	cmd := exec.Command("sh", "-c", script)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() string {
		await(t, "the attacker's tries", time.Minute, func() bool {
			tries, _ := os.ReadFile(log + ".tries")
			return strings.Count(string(tries), "try") >= 3
		})
		if err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
		got, err := os.ReadFile(log)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(got)
	}
}

// TestQemuGateOutlivesTheGuard attacks while the guard is stopped, killed, ended and
// started again.
func TestQemuGateOutlivesTheGuard(t *testing.T) {
	withGate(t)
	h := newHost(t, xfsHost, "shim")
	image := h.image(t, "image.img", "4M")
	dmloopOK(t, "map", image)
	through := attacker(t, image, "image")
	for _, signal := range []string{"KILL", "TERM"} {
		endGuard(t, signal)
		time.Sleep(500 * time.Millisecond)
		startGuard(t)
		time.Sleep(time.Second)
	}
	pid := fmt.Sprint(guardPID())
	vmtest.Must(t, "kill", "-STOP", pid)
	time.Sleep(time.Second)
	vmtest.Must(t, "kill", "-CONT", pid)
	dmloopOK(t, "verify", "image")
	if got := through(); got != "" {
		t.Errorf("got through: %s", got)
	}
	if r := expect(t, 0, "list", "--raw", "--noheadings", "-o", "GRADE,STATE,GATE,GUARD", "image"); r.Stdout != "kernel healthy bpf 1\n" {
		t.Errorf("list: %s", r.Stdout)
	}
	if log := guardLog(); !strings.Contains(log, "an open of a pinned image was denied") || !strings.Contains(log, "program=cat") || !strings.Contains(log, "what=dm-load") {
		t.Errorf("the guard does not say what was refused: %s", log)
	}
	// The guard puts it in force again when somebody takes it away.
	expect(t, 0, "gate", "--clear")
	await(t, "the gate", 20*time.Second, func() bool { return !vmtestRun(t, "cat "+image) })
	await(t, "a healthy mapping", 20*time.Second, func() bool {
		return strings.Contains(cli("list", "--raw", "--noheadings", "-o", "GRADE,STATE", "image").Stdout, "kernel healthy")
	})
	expect(t, 0, "unmap", "image")
	vmtest.Must(t, "cat", image)
	endGuard(t, "TERM")
	noGate(t)
}

func vmtestRun(t *testing.T, command string) bool {
	through, _ := others(t, command)
	return through
}

// noGate fails the test when anything of a gate is left.
func noGate(t *testing.T) {
	t.Helper()
	if left, err := filepath.Glob("/sys/fs/bpf/dmloop/*"); err != nil || len(left) > 0 {
		t.Errorf("left of the gate: %q, %v", left, err)
	}
	if _, err := os.Stat("/sys/fs/bpf/dmloop"); err == nil {
		t.Error("the gate's folder is left")
	}
}

// TestQemuGateSealedForOthers has an image sealed that others may open: the gate keeps them out
// from before swapon until its page is wiped.
func TestQemuGateSealedForOthers(t *testing.T) {
	withGate(t)
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "4M")
	expect(t, 0, "seal", image)
	vmtest.Must(t, "chmod", "0666", image)
	dmloopOK(t, "map", "--no-guard", image)
	through := attacker(t, image, "image")
	time.Sleep(2 * time.Second)
	if got := through(); got != "" {
		t.Errorf("got through: %s", got)
	}
	if r := expect(t, 0, "list", "--raw", "--noheadings", "-o", "PIN,GRADE,STATE", "image"); r.Stdout != "swap+immutable+bpf kernel healthy\n" && r.Stdout != "immutable+swap+bpf kernel healthy\n" {
		t.Errorf("list: %s", r.Stdout)
	}
	refusedTo(t, "swapoff "+image, "swapoff -a; ! grep -q image.img /proc/swaps")
	expect(t, 0, "unmap", "image")
	vmtest.Must(t, "cat", image)
	noGate(t)
	expect(t, 3, "map", "--no-guard", "--gate=none", image) // others may open it, and nothing keeps them out
	nothingLeft(t, image)
}

// TestQemuGateKilled kills map and unmap at the calls by which the gate comes into force and
// goes, and expects nothing left after the next command.
func TestQemuGateKilled(t *testing.T) {
	withGate(t)
	h := newHost(t, xfsHost, "shim")
	image := h.image(t, "image.img", "2M")
	sum := vmtest.ChecksumFile(t, image)
	after := func(how string) {
		t.Helper()
		if r := cli("unmap", "image"); r.Code != 0 && r.Code != 6 {
			t.Errorf("%s: unmap: exit code %d\n%s", how, r.Code, r.Stderr)
		}
		expect(t, 0, "pin", image) // takes the lock, and so finishes what was left
		expect(t, 0, "unpin", image)
		if left := look(t, image); left != (remains{}) {
			t.Errorf("%s: left: %+v", how, left)
		}
		noGate(t)
		if got := vmtest.ChecksumFile(t, image); got != sum {
			t.Errorf("%s: the image changed", how)
		}
	}
	t.Run("map", func(t *testing.T) {
		points(t, []string{"bpf/9", "mkdirat", "renameat", "flock", "ioctl/5"}, func() []string { return []string{"map", "--no-guard", image} }, after)
	})
	t.Run("unmap", func(t *testing.T) {
		points(t, []string{"bpf/3", "unlinkat/2", "renameat", "flock", "ioctl/3"}, func() []string {
			expect(t, 0, "map", "--no-guard", image)
			return []string{"unmap", "image"}
		}, after)
	})
}

// TestQemuGateCycles maps and unmaps again and again; commands and guards are killed at any
// moment. $DMLOOP_GATE_CYCLES says how often.
func TestQemuGateCycles(t *testing.T) {
	withGate(t)
	cycles := 5
	if v := os.Getenv("DMLOOP_GATE_CYCLES"); v != "" {
		if _, err := fmt.Sscan(v, &cycles); err != nil {
			t.Fatal(err)
		}
	}
	h := newHost(t, xfsHost, "shim")
	image := h.image(t, "image.img", "1M")
	sum := vmtest.ChecksumFile(t, image)
	inKernel := func() (programs, links bool) {
		return strings.Contains(vmtest.Must(t, "bpftool", "prog", "show"), "name file_ioctl"),
			strings.Contains(vmtest.Must(t, "bpftool", "link", "show"), "lsm_mac")
	}
	expect(t, 0, "map", "--no-guard", image)
	if programs, links := inKernel(); !programs || !links {
		t.Fatalf("while it is in force: programs %v, links %v", programs, links)
	}
	expect(t, 0, "unmap", "image")
	kills := 0
	for i := range cycles {
		args := []string{"map", image}
		if i%3 == 0 {
			args = []string{"map", "--no-guard", image}
		}
		for _, line := range [][]string{args, {"unmap", "image"}} {
			cmd := command(t, "dmloop", line...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if i%2 == 1 {
				time.Sleep(time.Duration(i*37%900) * time.Millisecond)
				kills++
				_ = cmd.Process.Kill() // it may have ended
			}
			if i%5 == 4 && guardPID() != 0 {
				endGuard(t, "KILL")
			}
			_ = cmd.Wait()
		}
		if r := cli("unmap", "image"); r.Code != 0 && r.Code != 6 {
			t.Fatalf("cycle %d: unmap: exit code %d\n%s\n%s", i, r.Code, r.Stderr, guardLog())
		}
		if t.Failed() {
			return
		}
	}
	endGuard(t, "TERM")
	expect(t, 0, "pin", image)
	expect(t, 0, "unpin", image)
	nothingLeft(t, image)
	noGate(t)
	if got := vmtest.ChecksumFile(t, image); got != sum {
		t.Error("the image changed")
	}
	if programs, links := inKernel(); programs || links {
		t.Errorf("left in the kernel: programs %v, links %v", programs, links)
	}
	t.Logf("%d cycles, %d commands killed", cycles, kills)
}

// TestQemuGateAfterStart puts the gate in force while a command waits for the lock: it passes
// all the same.
func TestQemuGateAfterStart(t *testing.T) {
	withGate(t)
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "2M")
	dmloopOK(t, "map", image)
	endGuard(t, "KILL")
	expect(t, 0, "gate", "--clear")
	lock, err := os.Open("/run/dmloop/.lock")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	unmap := command(t, "dmloop", "unmap", "image")
	out := bytes.Buffer{}
	unmap.Stdout, unmap.Stderr = &out, &out
	if err := unmap.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	for _, err := range []error{unmap.Process.Signal(unix.SIGSTOP), unix.Flock(int(lock.Fd()), unix.LOCK_UN)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	startGuard(t)
	await(t, "the gate", 20*time.Second, func() bool { return !vmtestRun(t, "cat "+image) })
	endGuard(t, "KILL")
	if err := unmap.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := unmap.Wait(); err != nil {
		t.Errorf("unmap: %v %s", err, &out)
	}
	vmtest.Must(t, "cat", image)
	nothingLeft(t, image)
	noGate(t)
}
