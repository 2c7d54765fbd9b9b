//go:build vmtest

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

// held runs a command whose main thread stands still for a few seconds at a system call, does
// something meanwhile, and returns what became of the command.
func held(t testing.TB, call string, n int, meanwhile func(), args ...string) vmtest.Result {
	t.Helper()
	still := 5 * time.Second // half of which is enough for the command to come there
	return heldFor(t, still, nil, call, n, func() { time.Sleep(still / 2); meanwhile() }, args...)
}

// heldFor is held with more options of strace; meanwhile waits for the command by itself.
func heldFor(t testing.TB, still time.Duration, options []string, call string, n int, meanwhile func(), args ...string) vmtest.Result {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	inject := fmt.Sprintf("inject=%s:delay_enter=%d:when=%d", call, still.Microseconds(), n)
	cmd := exec.Command("strace", slices.Concat(options, []string{"-f", "-o", "/dev/null", "-e", inject, self}, args)...)
	cmd.Env = append(os.Environ(), roleVariable+"=dmloop on one thread")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	meanwhile()
	err = cmd.Wait()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < still {
		t.Fatalf("%q was not held at %s %d: %s\n%s", args, call, n, took, errOut.String())
	}
	return vmtest.Result{Stdout: out.String(), Stderr: errOut.String(), Code: cmd.ProcessState.ExitCode()}
}

// ioctlOf returns which ioctl of a command's main thread is the first with this name.
func ioctlOf(t testing.TB, name string, args ...string) int {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command("strace", append([]string{"-f", "-o", log, "-e", "trace=ioctl", self}, args...)...)
	cmd.Env = append(os.Environ(), roleVariable+"=dmloop on one thread")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	main, n := "", 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		pid, call, _ := strings.Cut(lines.Text(), " ")
		if main == "" {
			main = pid
		}
		if pid != main || !strings.HasPrefix(strings.TrimSpace(call), "ioctl(") {
			continue
		}
		if n++; strings.Contains(call, name) {
			return n
		}
	}
	t.Fatalf("%q does no ioctl %s", args, name)
	return 0
}

// A guard that begins after a grow was killed between its record and its table tears nothing down: it
// finishes the work.
func TestGuardBeginsAfterKilledGrow(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", fmt.Sprint(growOld))
	mustDmloop(t, "map", image)
	defer endGuard(t, "TERM")
	endGuard(t, "KILL")
	live := ioctlOf(t, "DM_DEV_SUSPEND", "grow", "--unsafe", "image", "+1M")
	expect(t, 0, "unmap", "image")
	os.Remove(image)
	h.image(t, "image.img", fmt.Sprint(growOld))
	mustDmloop(t, "map", image)
	sum := fill(t, "/dev/mapper/image", growOld, 1)
	endGuard(t, "KILL")
	if !killAt(t, "ioctl", live, "grow", "--unsafe", "image", fmt.Sprint(growNew)) {
		t.Fatal("not killed")
	}
	if text, err := os.ReadFile("/run/dmloop/image.mapping"); err != nil || !strings.Contains(string(text), `"growing"`) || vmtest.Sectors(t, "/dev/mapper/image")*512 != growOld {
		t.Fatalf("not killed between the record and the table: %s, %v", text, err)
	}
	expect(t, 0, "verify", "image")
	startGuard(t)
	await(t, "the guard's end of it", 20*time.Second, func() bool {
		text, err := os.ReadFile("/run/dmloop/image.mapping")
		return err == nil && !strings.Contains(string(text), `"growing"`)
	})
	if state := strings.TrimSpace(expect(t, 0, "list", "--raw", "-n", "-o", "STATE,GUARD", "image").Stdout); state != "healthy 1" {
		t.Errorf("%q\n%s", state, guardLog())
	} else if settledGrowth(t, "settled", image, sum) != 1 {
		t.Error("the old size")
	}
	expect(t, 0, "unmap", "image")
	nothingLeft(t, image)
}

// What was stopped while an image was made longer stays stopped, before the new table is loaded and
// after that.
func TestGrowBringsNothingBack(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "1M")
	mapIt(t, image, "image")
	load := ioctlOf(t, "DM_TABLE_LOAD", "grow", "--unsafe", "image", "+1M")
	for _, at := range []struct {
		call string
		n    int
	}{{"ioctl", load}, {"renameat", 2}} {
		r := held(t, at.call, at.n, func() { vmtest.Must(t, "dmsetup", "suspend", "--noflush", "image") }, "grow", "--unsafe", "image", "+1M")
		if info := vmtest.Must(t, "dmsetup", "info", "image"); r.Code != 5 || !strings.Contains(r.Stderr, "suspended") || !strings.Contains(info, "SUSPENDED") {
			t.Errorf("%s %d: suspended, and resumed by grow: exit code %d\n%s%s", at.call, at.n, r.Code, r.Stderr, info)
		}
		expect(t, 6, "unmap", "nobody")
		if info := vmtest.Must(t, "dmsetup", "info", "image"); !strings.Contains(info, "SUSPENDED") {
			t.Errorf("%s %d: suspended, and resumed by the next command\n%s", at.call, at.n, info)
		}
		vmtest.Must(t, "dmsetup", "resume", "image")
		expect(t, 6, "unmap", "nobody")
		expect(t, 0, "verify", "image")
		if size := sizeOf(t, image); vmtest.Sectors(t, "/dev/mapper/image")*512 != size {
			t.Errorf("%s %d: the file has %d bytes, the device %d sectors", at.call, at.n, size, vmtest.Sectors(t, "/dev/mapper/image"))
		}

		r = held(t, at.call, at.n, func() { vmtest.Must(t, "dmsetup", "wipe_table", "--noflush", "image") }, "grow", "--unsafe", "image", "+1M")
		if table := vmtest.Must(t, "dmsetup", "table", "image"); r.Code == 0 || strings.Contains(table, "linear") {
			t.Errorf("%s %d: torn down, and brought back by grow: exit code %d\n%s%s", at.call, at.n, r.Code, r.Stderr, table)
		}
		expect(t, 6, "unmap", "nobody")
		if table := vmtest.Must(t, "dmsetup", "table", "image"); strings.Contains(table, "linear") {
			t.Errorf("%s %d: torn down, and brought back by the next command:\n%s", at.call, at.n, table)
		}
		expect(t, 4, "verify", "image")
		expect(t, 0, "unmap", "image")
		mapIt(t, image, "image")
	}
	expect(t, 0, "unmap", "image")
	nothingLeft(t, image)
}

// An image that loses its last name while it is not immutable is not mapped and does not stay
// so: its blocks are free when the command ends.
func TestImageDeletedMeanwhile(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "1M")
	r := held(t, "fsetxattr", 1, func() { os.Remove(image) }, "map", "--no-guard", "--unsafe", image)
	if r.Code != 3 || !strings.Contains(r.Stderr, "deleted") {
		t.Errorf("map: exit code %d\n%s%s", r.Code, r.Stderr, vmtest.Must(t, "dmsetup", "table"))
		cli("unmap", "image")
	}
	nothingLeft(t)

	image = h.image(t, "image.img", "1M")
	mapIt(t, image, "image")
	r = held(t, "pwrite64", 1, func() { os.Remove(image) }, "grow", "--unsafe", "image", "+1M")
	if table := vmtest.Must(t, "dmsetup", "table", "image"); r.Code != 3 || !strings.Contains(r.Stderr, "deleted") || strings.Contains(table, "linear") {
		t.Errorf("grow: exit code %d\n%s%s", r.Code, r.Stderr, table)
	}
	if state := recordedState(t, "image"); state != "failed" {
		t.Errorf("grow: the mapping is %s", state)
	}
	expect(t, 0, "unmap", "image")
	nothingLeft(t)
	h.check(t)
}

// flagOff waits until an image, at least so long, has been without its immutable flag for a while: while
// zeros are written it is off, too.
func flagOff(t testing.TB, image string, size uint64) {
	t.Helper()
	off := 0
	await(t, "the flag's being off", 25*time.Second, func() bool {
		time.Sleep(100 * time.Millisecond)
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, image, 0, unix.STATX_BASIC_STATS, &st); err != nil {
			t.Fatal(err)
		}
		off++
		if st.Size < size || st.Attributes&unix.STATX_ATTR_IMMUTABLE != 0 {
			off = 0
		}
		return off == 40
	})
}

// The gate keeps others out of an image without its flag also while a growth is taken back.
func TestQemuGateWhileGrowthIsUndone(t *testing.T) {
	withGate(t)
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "4M")
	dmloopOK(t, "map", image)
	t.Cleanup(func() { cli("unmap", "image") })
	load := ioctlOf(t, "DM_TABLE_LOAD", "grow", "image", "+1M")
	fails := []string{"-e", fmt.Sprintf("inject=ioctl:error=ENOMEM:when=%d", load)}
	r := heldFor(t, 40*time.Second, fails, "ftruncate", 2, func() {
		flagOff(t, image, 6<<20)
		for _, try := range [][]string{{"cat", image}, {"rm", "-f", image}, {"truncate", "-s", "1M", image}} {
			if r := vmtest.Run(t, try...); r.Code == 0 {
				t.Errorf("without its flag: %q is not refused", try)
			}
		}
	}, "grow", "image", "+1M")
	if size := sizeOf(t, image); r.Code != 1 || size != 5<<20 {
		t.Errorf("exit code %d, %d bytes\n%s", r.Code, size, r.Stderr)
	}
	dmloopOK(t, "verify", "image")
	dmloopOK(t, "unmap", "image")
	nothingLeft(t, image)
}

// The device that becomes longer is the mapping's, whatever has its name.
func TestGrowOfRenamedMapping(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "8M")
	mapIt(t, image, "image")
	vmtest.Must(t, "mkfs.ext4", "-q", "-F", "/dev/mapper/image", "8M")
	vmtest.Must(t, "dmsetup", "rename", "image", "other")
	vmtest.DmsetupCreate(t, "image", fmt.Sprintf("0 65536 linear %s 800000", vmtest.Disk(t, 1)))
	vmtest.Must(t, "mkfs.ext4", "-q", "-F", "/dev/mapper/image", "8M")
	was := vmtest.Must(t, "sh", "-c", "dumpe2fs -h /dev/mapper/image 2>/dev/null | grep '^Block count'")
	expect(t, 0, "grow", "--unsafe", "--resizefs", "image", "+8M")
	if now := vmtest.Must(t, "sh", "-c", "dumpe2fs -h /dev/mapper/other 2>/dev/null | grep '^Block count'"); now == was {
		t.Errorf("the mapping's file system was not resized: %s", now)
	}
	if now := vmtest.Must(t, "sh", "-c", "dumpe2fs -h /dev/mapper/image 2>/dev/null | grep '^Block count'"); now != was {
		t.Errorf("another device's file system was resized: %s, was %s", now, was)
	}
	vmtest.DmsetupRemove(t, "image")
	expect(t, 0, "unmap", "image")
	nothingLeft(t, image)
}

// A sealed image that cannot be sealed again, being longer, is as long as it was, and sealed.
func TestGrowSealedWithoutRoom(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	vmtest.Must(t, "tune2fs", "-m", "0", "-r", "0", h.dev)
	image := h.image(t, "image.img", "4M")
	sum := fill(t, image, 4<<20, 1)
	expect(t, 0, "seal", image)
	was := sizeOf(t, image)
	vmtest.Must(t, "sync")
	var blocks, block int64
	if _, err := fmt.Sscan(vmtest.Must(t, "stat", "-f", "-c", "%a %S", h.dir), &blocks, &block); err != nil {
		t.Fatal(err)
	}
	for less := int64(-2); ; less++ {
		r := cli("grow", image, fmt.Sprintf("+%d", (blocks-less)*block))
		if sealed := expect(t, 0, "check", "--json", image).Stdout; !strings.Contains(sealed, `"sealed": true`) {
			t.Fatalf("%d blocks less: exit code %d, not sealed any more, %d bytes\n%s", less, r.Code, sizeOf(t, image), r.Stderr)
		}
		if r.Code == 0 {
			break
		}
		if size := sizeOf(t, image); r.Code != 1 || !strings.Contains(r.Stderr, "space") || size != was {
			t.Fatalf("%d blocks less: exit code %d, %d bytes\n%s", less, r.Code, size, r.Stderr)
		}
	}
	expect(t, 0, "unseal", image)
	if got := headSum(t, image, 4<<20); !strings.HasPrefix(got, sum) {
		t.Error("the content changed")
	}
	nothingLeft(t, image)
}

// The gate keeps others out while the flag is off for the end of the kernel's claim.
func TestQemuGateWhileClaimEnds(t *testing.T) {
	withGate(t)
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "4M")
	expect(t, 0, "seal", image)
	dmloopOK(t, "map", "--no-guard", image)
	t.Cleanup(func() { cli("unmap", "image") })
	r := heldFor(t, 30*time.Second, nil, "fsetxattr", 1, func() {
		flagOff(t, image, 4<<20)
		for _, try := range [][]string{{"cat", image}, {"truncate", "-s", "1M", image}, {"rm", "-f", image}} {
			if r := vmtest.Run(t, try...); r.Code == 0 {
				t.Errorf("without its flag: %q is not refused", try)
			}
		}
	}, "boot", "release", "image")
	if r.Code != 0 {
		t.Errorf("exit code %d\n%s", r.Code, r.Stderr)
	}
	dmloopOK(t, "unmap", "image")
	nothingLeft(t, image)
}
