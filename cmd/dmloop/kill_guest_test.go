//go:build vmtest

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest"
)

func init() {
	if os.Getenv(roleVariable) == "dmloop on one thread" {
		runtime.LockOSThread() // strace counts system calls by thread
		os.Exit(program())
	}
}

// killAt runs a command line that is killed at the nth system call of this name, and
// reports whether it came to that.
func killAt(t testing.TB, call string, n int, args ...string) bool {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	inject := fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n)
	cmd := exec.Command("strace", append([]string{"-f", "-o", "/dev/null", "-e", inject, self}, args...)...)
	cmd.Env = append(os.Environ(), roleVariable+"=dmloop on one thread")
	return killed(t, cmd, inject)
}

func killed(t testing.TB, cmd *exec.Cmd, how string) bool {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if status, ok := exit.Sys().(interface{ Signaled() bool }); exit.ExitCode() == 137 || ok && status.Signaled() {
		return true
	}
	t.Fatalf("%s: %v\n%s", how, err, out)
	return false
}

// everything reports whether tests do all that they can do: make test-matrix has them do so. Otherwise
// some take a selection, for the time that make test has.
func everything() bool { return os.Getenv("DMLOOP_EVERYTHING") != "" }

// points kills a command at one system call after the other, or at one of three. Prepare makes
// the state before it and returns its arguments; check judges what is left.
func points(t *testing.T, calls []string, prepare func() []string, check func(how string)) {
	t.Helper()
	count, stride, least := 0, 1, 30
	if !everything() {
		stride, least = 3, 10
	}
	for i, call := range calls {
		name, every, _ := strings.Cut(call, "/") // "openat/4": every fourth
		step := 1
		if every != "" {
			fmt.Sscan(every, &step)
		}
		for n := 1 + step*(i%stride); ; n += step * stride {
			if !killAt(t, name, n, prepare()...) {
				check("not killed")
				break
			}
			count++
			check(fmt.Sprintf("killed at %s %d", name, n))
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("killed at %d points", count)
	if count < least {
		t.Errorf("killed at %d points only", count)
	}
}

// remains is what there is of one mapping, by what the kernel and the state directory say.
type remains struct{ device, immutable, mark, record bool }

func look(t testing.TB, image string) remains {
	t.Helper()
	var r remains
	uuids, _ := filepath.Glob("/sys/block/dm-*/dm/uuid")
	for _, path := range uuids {
		if b, _ := os.ReadFile(path); strings.HasPrefix(string(b), "DMLOOP-") {
			r.device = true
		}
	}
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil && !onBare(image) {
		t.Fatal(err)
	}
	r.immutable = flags&0x10 != 0
	_, err = unix.Fgetxattr(int(f.Fd()), "trusted.dmloop.pin", nil)
	r.mark = err == nil
	records, _ := filepath.Glob("/run/dmloop/*.mapping")
	for _, path := range records {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		head, _, _ := strings.Cut(string(b), "\n")
		var m struct{ Image struct{ Path string } }
		if err := json.Unmarshal([]byte(head), &m); err != nil || m.Image.Path != image {
			t.Errorf("%s names %q, %v", path, m.Image.Path, err)
		}
		r.record = true
	}
	return r
}

// changing are the system calls by which map and unmap change something, and some
// between them.
var changing = []string{"ioctl", "fsetxattr", "fremovexattr", "fsync", "renameat", "unlinkat", "symlinkat", "mknodat",
	"fcntl", "fadvise64", "flock", "openat/3"}

func TestFullKilledMap(t *testing.T) {
	for _, kind := range []hostKind{ext4Host, xfsHost} {
		t.Run(kind.name, func(t *testing.T) {
			h := newHost(t, kind, "shim")
			image := h.image(t, "image.img", "2M")
			sum := fill(t, image, 2<<20, 1)
			args := []string{"map", "--no-guard", "--unsafe", image}
			points(t, changing, func() []string { return args }, func(how string) {
				t.Helper()
				left := look(t, image)
				if (left.device || left.immutable || left.mark) && !left.record {
					t.Errorf("%s: left without a record: %+v", how, left)
				}
				if left.immutable && !left.mark {
					t.Errorf("%s: immutable, and nothing on the inode says by whom", how)
				}
				r := cli(args...)
				if r.Code != 0 && (r.Code != 5 || !strings.Contains(r.Stderr, "mapped already as image")) {
					t.Errorf("%s: the same again: exit code %d\n%s", how, r.Code, r.Stderr)
				}
				if left := look(t, image); left != (remains{true, true, true, true}) {
					t.Errorf("%s: mapped: %+v", how, left)
				}
				if r := cli("verify"); r.Code != 0 {
					t.Errorf("%s: verify: exit code %d\n%s", how, r.Code, r.Stdout)
				}
				if r := cli("unmap", image); r.Code != 0 {
					t.Errorf("%s: unmap: exit code %d\n%s", how, r.Code, r.Stderr)
				}
				if left := look(t, image); left != (remains{}) {
					t.Errorf("%s: unmapped: %+v", how, left)
				}
			})
			if got := vmtest.ChecksumFile(t, image); got != sum {
				t.Error("the image changed")
			}
			nothingLeft(t, image)
		})
	}
}

func TestFullKilledUnmap(t *testing.T) {
	h := newHost(t, xfsHost, "shim")
	image := h.image(t, "image.img", "2M")
	sum := ""
	seed := byte(0)
	prepare := func() []string {
		t.Helper()
		expect(t, 0, "map", "--no-guard", "--unsafe", image)
		seed++
		sum = fill(t, "/dev/mapper/image", 2<<20, seed)
		if seed%2 == 0 {
			return []string{"unmap", image}
		}
		return []string{"unmap", "image"}
	}
	points(t, changing, prepare, func(how string) {
		t.Helper()
		left := look(t, image)
		if (left.device || left.immutable || left.mark) && !left.record {
			t.Errorf("%s: left without a record: %+v", how, left)
		}
		r := cli("unmap", "image")
		if r.Code != 0 && (r.Code != 6 || left != (remains{})) {
			t.Errorf("%s: the same again: exit code %d\n%s", how, r.Code, r.Stderr)
		}
		if left := look(t, image); left != (remains{}) {
			t.Errorf("%s: unmapped: %+v", how, left)
		}
		if got := vmtest.ChecksumFile(t, image); got != sum {
			t.Errorf("%s: the file does not hold what the device had", how)
		}
	})
	nothingLeft(t, image)
}

// What an unmap leaves that was killed after it had said so in the record is not healthy
// before somebody has looked at it: nor after that when it is not as it was recorded.
func TestKilledUnmapIsLookedAt(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image, other := h.image(t, "image.img", "2M"), h.image(t, "other.img", "1M")
	listed := func() string {
		t.Helper()
		return strings.TrimSpace(expect(t, 0, "list", "--raw", "-n", "-o", "STATE", "vol").Stdout)
	}
	for _, lost := range []bool{false, true} {
		expect(t, 0, "map", "--no-guard", image, "vol")
		for n := 1; listed() != "releasing"; n++ {
			if !killAt(t, "ioctl", n, "unmap", "vol") {
				t.Fatal("unmap has ended, and was never killed between its record and the removal")
			}
		}
		user, err := os.Open("/dev/mapper/vol") // so that the release cannot go on
		if err != nil {
			t.Fatal(err)
		}
		if lost {
			vmtest.Must(t, "chattr", "-i", image)
		}
		if state := listed(); state != "releasing" {
			t.Errorf("pin lost %v: listed as %s before anybody has looked", lost, state)
		}
		r := expect(t, 0, "map", "--no-guard", other, "other")
		if !strings.Contains(r.Stderr, "an unmap was interrupted") {
			t.Errorf("the next command says %q", r.Stderr)
		}
		if state := recordedState(t, "vol"); (state == "healthy") == lost {
			t.Errorf("pin lost %v: recorded as %s", lost, state)
		}
		if state := listed(); (state == "healthy") == lost {
			t.Errorf("pin lost %v: listed as %s", lost, state)
		}
		user.Close()
		expect(t, 0, "unmap", "other")
		expect(t, 0, "unmap", "vol")
		nothingLeft(t, image, other)
	}
}

// recordedState is what the record of a mapping says, without a look at the mapping.
func recordedState(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile("/run/dmloop/" + name + ".mapping")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), `"state":"`)
	state, _, _ := strings.Cut(rest, `"`)
	return state
}

// fileCalls are those by which create and provision change something.
var fileCalls = []string{"ioctl", "fallocate", "pwrite64", "fsync", "linkat", "fcntl", "openat/2", "fstatfs", "pread64", "statx"}

func TestFullKilledCreate(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.path("image.img")
	points(t, fileCalls, func() []string { return []string{"create", image, "24M"} }, func(how string) {
		t.Helper()
		info, err := os.Stat(image)
		switch {
		case err == nil && info.Size() != 24<<20:
			t.Errorf("%s: half a file of %d bytes", how, info.Size())
		case err == nil:
			expect(t, 5, "create", image, "24M")
		default:
			expect(t, 0, "create", image, "24M")
		}
		expect(t, 0, "check", image)
		if err := os.Remove(image); err != nil {
			t.Fatal(err)
		}
		left, err := os.ReadDir(h.dir)
		if err != nil || len(left) != 1 { // lost+found
			t.Errorf("%s: %d files, %v", how, len(left), err)
		}
	})
}

func TestFullKilledProvision(t *testing.T) {
	h := newHost(t, xfsHost, "shim")
	image := h.path("image.img")
	sum := ""
	prepare := func() []string {
		shell(t, h.dir, `rm -f image.img other; head -c 8M /dev/urandom >image.img; sync image.img
			fallocate -p -o 1M -l 1M image.img; fallocate -z -o 3M -l 1M image.img; truncate -s 10M image.img
			xfs_io -f -c 'reflink image.img 5m 0 2m' other >/dev/null; sync image.img other`)
		sum = vmtest.ChecksumFile(t, image)
		return []string{"provision", image}
	}
	points(t, fileCalls, prepare, func(how string) {
		t.Helper()
		if got := vmtest.ChecksumFile(t, image); got != sum {
			t.Errorf("%s: the content changed", how)
		}
		expect(t, 0, "provision", image)
		mappable(t, xfsHost, image)
		if got := vmtest.ChecksumFile(t, image); got != sum {
			t.Errorf("%s: going on changed the content", how)
		}
	})
}

// Killed after a while instead of at a call, so that no one place is left out by the
// choice of calls.
func TestFullKilledAtRandom(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	image := h.image(t, "image.img", "8M")
	start := time.Now()
	if err := command(t, "dmloop", "map", "--no-guard", image).Run(); err != nil {
		t.Fatal(err)
	}
	whole := time.Since(start)
	expect(t, 0, "unmap", image)
	const rounds = 40
	for i := range rounds {
		for _, args := range [][]string{{"map", "--no-guard", image}, {"unmap", image}} {
			cmd := command(t, "dmloop", args...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(whole * time.Duration(i) / rounds)
			cmd.Process.Kill()
			cmd.Wait()
			left := look(t, image)
			if (left.device || left.immutable || left.mark) && !left.record {
				t.Fatalf("%s killed after %d/%d of its time: left without a record: %+v", args[0], i, rounds, left)
			}
			r := cli(args...)
			finished := map[string]int{"map": 5, "unmap": 6}[args[0]]
			if r.Code != 0 && r.Code != finished {
				t.Fatalf("%s killed after %d/%d of its time: again: exit code %d\n%s", args[0], i, rounds, r.Code, r.Stderr)
			}
		}
		if left := look(t, image); left != (remains{}) {
			t.Fatalf("round %d: %+v", i, left)
		}
	}
}

// A shim that was killed half made is finished by the next one of this name, from the
// command line and from dmlooptab; a device that shows something is not.
func TestKilledShim(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	tab := filepath.Join(t.TempDir(), "tab")
	if err := os.WriteFile(tab, []byte("half "+disk+" - shim\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tables := map[string]int{}
	vmtest.DmsetupRemove(t, "half")
	for _, k := range []struct {
		call  string
		again []string
	}{
		{"ioctl", []string{"shim", disk, "half"}}, {"ioctl", []string{"activate", "--tab", tab, "half"}},
		{"symlinkat", []string{"activate", "--tab", tab, "half"}}, // live, and nothing leads to it where udev does not run
	} {
		call, again := k.call, k.again
		activates := again[0] == "activate"
		for n := 1; killAt(t, call, n, "shim", disk, "half"); n++ {
			r := vmtest.Run(t, "dmsetup", "table", "half")
			there := r.Code == 0
			whole := strings.TrimSpace(r.Stdout) != ""
			switch {
			case there && !whole:
				tables["half"]++
			case there:
				tables["whole"]++
			}
			_, unlinked := os.Stat("/dev/mapper/half")
			if !activates && whole && unlinked != nil {
				expect(t, 5, again...) // it is there, and nothing leads to it
			} else if r := cli(again...); r.Code != 0 {
				t.Errorf("killed at %s %d (a device: %v, with a table: %v): %q: exit code %d\n%s", call, n, there, whole, again, r.Code, r.Stderr)
			}
			if now := strings.TrimSpace(vmtest.Must(t, "dmsetup", "table", "half")); !strings.HasPrefix(now, fmt.Sprintf("0 %d linear ", vmtest.Sectors(t, disk))) {
				t.Errorf("killed at %s %d: the table is %q", call, n, now)
			}
			if _, err := os.Stat("/dev/mapper/half"); err != nil && (activates || !whole) {
				t.Errorf("killed at %s %d: %v", call, n, err)
			}
			if info := vmtest.Must(t, "dmsetup", "info", "-c", "--noheadings", "-o", "uuid,suspended,tables_loaded", "half"); !strings.HasPrefix(info, "DMLOOPSHIM-") {
				t.Errorf("killed at %s %d: %s", call, n, info)
			}
			vmtest.DmsetupRemove(t, "half")
			if t.Failed() {
				return
			}
		}
		vmtest.DmsetupRemove(t, "half")
	}
	if tables["half"] == 0 || tables["whole"] == 0 {
		t.Errorf("the kills left %v", tables)
	}
	// What is empty and not ours stays.
	vmtest.Must(t, "dmsetup", "create", "half", "--notable")
	defer vmtest.DmsetupRemove(t, "half")
	expect(t, 5, "shim", disk, "half")
	if r := cli("activate", "--tab", tab, "half"); r.Code == 0 {
		t.Errorf("activate with somebody else's empty device: %s", r.Stdout)
	}
	if table := strings.TrimSpace(vmtest.Must(t, "dmsetup", "table", "half")); table != "" {
		t.Errorf("somebody else's device has the table %q", table)
	}
}
