//go:build vmtest

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

// lifeHost is a host file system with an image of 4 MiB.
func lifeHost(t *testing.T, fs string) (img string) {
	t.Helper()
	host := vmtest.DmsetupCreate(t, hostName, hostTable(vmtest.Disk(t, 0)))
	vmtest.Mkfs(t, fs, host)
	img = filepath.Join(vmtest.Mount(t, host), "image")
	vmtest.RandomFile(t, img, imageSize, 1)
	t.Cleanup(func() {
		for _, name := range strings.Fields(dmloop(t, "list", "--noheadings", "-o", "NAME").Stdout) {
			mustDmloop(t, "unmap", name)
		}
		endGuard(t, "TERM")
	})
	return img
}

func state(t *testing.T, column string) string {
	t.Helper()
	return strings.TrimSpace(mustDmloop(t, "list", "--noheadings", "-o", column, "vol"))
}

// The only pin that can be lost while the grade holds is one beside the kernel's
// own claim: it is set again. Losing the claim too is the end. (Where opens are
// denied, nobody gets so far.)
func TestFullGuardSetsALostPinAgain(t *testing.T) {
	img := lifeHost(t, "ext4")
	mustDmloop(t, "seal", img)
	mustDmloop(t, "map", img, "vol")
	lift := func() {
		t.Helper()
		if out, err := command(t, "attack", "chattr -i", img).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	}
	lift()
	await(t, "the flag's return", 10*time.Second, func() bool {
		return strings.Contains(strings.Fields(vmtest.Must(t, "lsattr", img))[0], "i")
	})
	await(t, "health", 10*time.Second, func() bool { return state(t, "STATE") == "healthy" })
	if vmtest.Run(t, "swapoff", img).Code == 0 {
		t.Fatal("swapoff of an immutable file worked")
	}
	pid := strconv.Itoa(guardPID()) // which would be quicker than swapoff
	vmtest.Must(t, "kill", "-STOP", pid)
	lift()
	vmtest.Must(t, "swapoff", img)
	vmtest.Must(t, "kill", "-CONT", pid)
	await(t, "the tear-down", 15*time.Second, func() bool {
		return !strings.Contains(vmtest.Run(t, "dmsetup", "table", "vol").Stdout, "linear")
	})
	await(t, "the record", 15*time.Second, func() bool { return state(t, "STATE") == "failed" })
	if reason := state(t, "REASON"); !strings.Contains(reason, "swap") {
		t.Errorf("the reason is %q", reason)
	}
}

// A guard that is killed comes back with the next map, finds what is there, and
// holds as much as before.
func TestGuardComesBack(t *testing.T) {
	img := lifeHost(t, "ext4")
	other := filepath.Join(filepath.Dir(img), "other")
	vmtest.RandomFile(t, other, imageSize, 2)
	mustDmloop(t, "map", img, "vol")
	if state(t, "GUARD") != "1" {
		t.Fatal("map returned before the guard watched")
	}
	// The gate keeps the group of an image that is gone for the next one.
	mustDmloop(t, "map", other, "second")
	mustDmloop(t, "unmap", "second")
	before := heldBy(t, guardPID())
	for range 3 {
		endGuard(t, "KILL")
		if state(t, "GUARD") != "0" || state(t, "STATE") != "healthy" {
			t.Errorf("without a guard: %s, %s", state(t, "GUARD"), state(t, "STATE"))
		}
		mustDmloop(t, "map", other, "second")
		if state(t, "GUARD") != "1" || state(t, "STATE") != "healthy" {
			t.Errorf("with the guard back: %s, %s", state(t, "GUARD"), state(t, "STATE"))
		}
		mustDmloop(t, "unmap", "second")
	}
	if after := heldBy(t, guardPID()); after.fds > before.fds {
		t.Errorf("%d descriptors after three lives, %d in the first", after.fds, before.fds)
	}
	if r := dmloop(t, "guard"); r.Code != 5 || !strings.Contains(r.Stderr, "running already") {
		t.Errorf("a second guard: exit code %d, %s", r.Code, r.Stderr)
	}
	endGuard(t, "TERM")
	if log := guardLog(); !strings.Contains(log, "leaves its mappings as they are") {
		t.Errorf("the log after SIGTERM:\n%s", log)
	}
	if table := vmtest.Must(t, "dmsetup", "table", "vol"); !strings.Contains(table, "linear") {
		t.Errorf("the table after SIGTERM: %s", table)
	}
}

// A command that has ended holds no descriptor: what it would leave to the collector, a
// program that calls it again and again would run out of.
func TestCommandsCloseWhatTheyOpen(t *testing.T) {
	img := lifeHost(t, "ext4")
	t.Setenv(roleVariable, "dmloop") // for the guard that map starts
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for _, args := range [][]string{
		{"check", img}, {"table", img}, {"map", img, "vol"}, {"check", img}, {"map", img, "again"}, {"list"}, {"status", "vol"}, {"verify"},
		{"extents", img}, {"pin", img}, {"provision", img}, {"unmap", "nothing"}, {"boot", "verify", "vol"}, {"boot", "cmdline", "vol"},
		{"grow", "--unsafe", "vol", "+64K"}, {"grow", "vol", "+64K"}, {"unmap", "vol"}, {"grow", img, "+64K"}, {"seal", img}, {"unseal", img}, {"pin", img}, {"unpin", img}, {"provision", img}, {"unmap", "vol"},
	} {
		before := descriptors(t)
		cli(args...)
		if after := descriptors(t); after != before {
			t.Errorf("dmloop %s left descriptors open:\n%sbefore:\n%s", strings.Join(args, " "), after, before)
		}
	}
	endGuard(t, "TERM")
}

// descriptors lists what this process has open, a line each.
func descriptors(t *testing.T) string {
	t.Helper()
	folder, err := os.Open("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	numbers, err := folder.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(numbers)
	var list strings.Builder
	for _, n := range numbers {
		target, err := os.Readlink("/proc/self/fd/" + n)
		if err == nil && !strings.HasPrefix(target, "anon_inode:[pidfd]") { // of processes that are waited for
			fmt.Fprintf(&list, "%s %s\n", n, target)
		}
	}
	return list.String()
}

// What a command began and could not end, the guard ends: a removal that was put off
// until the last user closes the device, pins on a file system that was read-only, and
// an unmap that was killed.
func TestGuardFinishesReleases(t *testing.T) {
	begun := time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
	img := lifeHost(t, "ext4")
	released := func() bool {
		records, _ := filepath.Glob("/run/dmloop/*.mapping")
		if len(records) > 0 {
			return false
		}
		flags := strings.Fields(vmtest.Must(t, "lsattr", img))[0]
		_, err := os.Stat("/dev/mapper/vol")
		return !strings.Contains(flags, "i") && os.IsNotExist(err)
	}
	mustDmloop(t, "map", img, "vol")
	user, err := os.Open("/dev/mapper/vol")
	if err != nil {
		t.Fatal(err)
	}
	mustDmloop(t, "unmap", "--deferred", "vol")
	if state(t, "STATE") != "releasing" {
		t.Errorf("state %s", state(t, "STATE"))
	}
	time.Sleep(1500 * time.Millisecond)
	if released() {
		t.Error("released while the device is open")
	}
	user.Close()
	await(t, "the release after the last close", 10*time.Second, released)

	mustDmloop(t, "map", img, "vol")
	dir := filepath.Dir(img)
	vmtest.Must(t, "mount", "-o", "remount,ro", dir)
	if r := dmloop(t, "unmap", "vol"); r.Code != 1 {
		t.Errorf("unmap on a read-only file system: exit code %d, %s%s", r.Code, r.Stdout, r.Stderr)
	}
	vmtest.Must(t, "mount", "-o", "remount,rw", dir)
	await(t, "the release after the remount", 30*time.Second, released)

	mustDmloop(t, "map", img, "vol")
	record, err := os.ReadFile("/run/dmloop/vol.mapping")
	if err != nil {
		t.Fatal(err)
	}
	half := strings.Replace(string(record), `"state":"healthy"`, `"state":"releasing"`, 1)
	if err := os.WriteFile("/run/dmloop/.half", []byte(half), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename("/run/dmloop/.half", "/run/dmloop/vol.mapping"); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of a killed unmap", 10*time.Second, released)
	finished := 0
	for line := range strings.Lines(guardLog()) { // tests before this one wrote to it, too
		at, message, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
		if at >= begun && strings.Contains(message, "what a command left was finished") && strings.Contains(message, "mapping=vol") {
			finished++
		}
	}
	if finished != 3 {
		t.Errorf("%d were finished, the log:\n%s", finished, guardLog())
	}
}

// Opens of an image that is mapped are denied, and logged with who tried; dmloop's
// own commands are served.
func TestQemuGuardDeniesOpens(t *testing.T) {
	img := lifeHost(t, "xfs")
	mustDmloop(t, "map", img, "vol")
	if grade := state(t, "GRADE"); grade != "guarded" {
		t.Errorf("grade %s", grade)
	}
	r := vmtest.Run(t, "cp", "--reflink=always", img, img+".clone")
	if r.Code == 0 || !strings.Contains(r.Stderr, "not permitted") {
		t.Errorf("cp: %d, %s", r.Code, r.Stderr)
	}
	await(t, "the log of the denial", 10*time.Second, func() bool {
		log := guardLog() // cp may be gone before it was asked for its name
		return strings.Contains(log, "an open of a pinned image was denied") && (strings.Contains(log, "program=cp") || strings.Contains(log, "program=?"))
	})
	for args, code := range map[string]int{"check": 3, "map": 5, "verify": 0} {
		words := []string{args, img}
		if args == "verify" {
			words[1] = "vol"
		}
		if r := dmloop(t, words...); r.Code != code {
			t.Errorf("dmloop %s: exit code %d, not %d: %s", args, r.Code, code, r.Stderr)
		}
	}
	own := filepath.Base(os.Args[0])
	if own = own[:min(len(own), 15)]; strings.Contains(guardLog(), "program="+own) {
		t.Errorf("the guard denies dmloop's own commands:\n%s", guardLog())
	}
	mustDmloop(t, "unmap", "vol")
	vmtest.Must(t, "cp", "--reflink=always", img, img+".clone")
}

// A reader that slipped in while no guard ran can share blocks on xfs: the mapping
// says so until it is gone, and is torn down when it does.
func TestQemuReaderFromBeforeTheGuard(t *testing.T) {
	img := lifeHost(t, "xfs")
	mustDmloop(t, "map", img, "vol")
	endGuard(t, "KILL")
	reader, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	startGuard(t)
	await(t, "the warning", 15*time.Second, func() bool { return state(t, "STATE") == "weakened" })
	clone, err := os.Create(img + ".clone")
	if err != nil {
		t.Fatal(err)
	}
	defer clone.Close()
	if err := unix.IoctlFileClone(int(clone.Fd()), int(reader.Fd())); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	await(t, "the tear-down", 15*time.Second, func() bool { return state(t, "STATE") == "failed" })
	t.Logf("torn down %s after the reflink", time.Since(begin))
}

// While the guard stands still, opens wait and do not pass; when it goes on, it
// answers them.
func TestQemuStoppedGuard(t *testing.T) {
	img := lifeHost(t, "ext4")
	mustDmloop(t, "map", "--gate=fanotify", img, "vol")
	pid := strconv.Itoa(guardPID())
	vmtest.Must(t, "kill", "-STOP", pid)
	cmd := command(t, "attack", "read", img)
	var said strings.Builder
	cmd.Stdout = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
		vmtest.Must(t, "kill", "-CONT", pid)
		t.Fatalf("the open did not wait: %s", said.String())
	case <-time.After(2 * time.Second):
	}
	// dmloop's own commands do not wait for ever.
	begin := time.Now()
	if r := dmloop(t, "list", "--raw", "-n", "-o", "NAME,GRADE,GUARD"); r.Code != 0 || r.Stdout != "vol unsafe 0\n" || time.Since(begin) > 20*time.Second {
		t.Errorf("list: exit code %d after %s: %s%s", r.Code, time.Since(begin), r.Stdout, r.Stderr)
	}
	vmtest.Must(t, "kill", "-CONT", pid)
	if err := <-done; err == nil || said.String() != "EPERM" {
		t.Errorf("the open got %q, %v", said.String(), err)
	}
}
