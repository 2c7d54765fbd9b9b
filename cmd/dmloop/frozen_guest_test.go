//go:build vmtest

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dmloop/internal/vmtest"
)

// ends runs dmloop as a process of its own, which has to end in time whatever the file
// system does, and with this exit code. What hangs is released by thaw.
func ends(t *testing.T, thaw func(), code int, args ...string) vmtest.Result {
	t.Helper()
	cmd := command(t, "dmloop", args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(40 * time.Second): // a question takes 3
		stack, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stack", cmd.Process.Pid))
		thaw()
		cmd.Process.Kill()
		<-done
		t.Fatalf("dmloop %s did not end\n%s%s", strings.Join(args, " "), errOut.String(), stack)
	}
	r := vmtest.Result{Stdout: out.String(), Stderr: errOut.String(), Code: cmd.ProcessState.ExitCode()}
	if r.Code != code {
		t.Errorf("dmloop %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.Code, code, r.Stdout, r.Stderr)
	}
	return r
}

// frozenWorld is a host with an image of each kind, mapped and not.
func frozenWorld(t *testing.T, kind hostKind) (h *host, images []string) {
	h = newHost(t, kind, "shim")
	for _, name := range []string{"plain", "sealed", "other", "othersealed"} {
		path := h.image(t, name, "1M")
		if strings.HasSuffix(name, "sealed") {
			expect(t, 0, "seal", path)
		}
		images = append(images, path)
	}
	mustDmloop(t, "map", "--unsafe", images[0]) // xfs: where no open can be denied
	mustDmloop(t, "map", images[1])
	return h, images
}

// patientKernel has the kernel say nothing of processes that sleep for minutes: here they
// are meant to.
func patientKernel(t *testing.T) {
	t.Helper()
	const path = "/proc/sys/kernel/hung_task_timeout_secs"
	before, err := os.ReadFile(path)
	if err != nil {
		return // User Mode Linux does not look for them
	}
	if err := os.WriteFile(path, []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(path, before, 0) })
}

// Nothing waits for a frozen file system: what would have to change something on it says
// that it is frozen, the rest answers, and a guard that is killed has a successor.
func TestFrozenHost(t *testing.T) {
	for _, kind := range []hostKind{ext4Host, xfsHost} {
		t.Run(kind.name, func(t *testing.T) { frozenHost(t, kind) })
	}
}

func frozenHost(t *testing.T, kind hostKind) {
	h, images := frozenWorld(t, kind)
	plain, sealed, other, otherSealed := images[0], images[1], images[2], images[3]
	tables := vmtest.Must(t, "dmsetup", "table")
	patientKernel(t)
	frozen := true
	thaw := func() {
		if frozen {
			frozen = false
			vmtest.Must(t, "fsfreeze", "--unfreeze", h.dir)
		}
	}
	vmtest.Must(t, "fsfreeze", "--freeze", h.dir)
	t.Cleanup(thaw)
	for _, args := range [][]string{
		{"map", other}, {"map", otherSealed}, {"pin", other}, {"unpin", other}, {"seal", other}, {"unseal", otherSealed}, {"provision", other},
		{"grow", other, "+1M"}, {"grow", "--unsafe", "plain", "+1M"}, {"unmap", "plain"}, {"unmap", sealed}, {"create", h.path("new"), "1M"}, {"seal", "--create", "1M", h.path("new")},
	} {
		r := ends(t, thaw, 5, args...)
		if !strings.Contains(r.Stderr, "frozen") || !strings.Contains(r.Stderr, "fsfreeze --unfreeze ") {
			t.Errorf("dmloop %s: %s", strings.Join(args, " "), r.Stderr)
		}
	}
	for _, args := range [][]string{
		{"list"}, {"status", "sealed"}, {"verify"}, {"verify", "sealed"}, {"extents", plain}, {"table", other},
	} {
		ends(t, thaw, 0, args...)
	}
	code := 0
	if lacksGate(t, kind) {
		code = 3
	}
	ends(t, thaw, code, "check", other)
	endGuard(t, "KILL")
	startGuard(t)
	ends(t, thaw, 0, "verify", "sealed")
	if now := vmtest.Must(t, "dmsetup", "table"); now != tables {
		t.Errorf("tables changed:\n%s\n%s", tables, now)
	}
	thaw()
	if states := mustDmloop(t, "list", "--raw", "-n", "-o", "NAME,STATE,GUARD"); strings.Count(states, " healthy 1\n") != 2 {
		t.Errorf("after the thaw: %s", states)
	}
	for _, path := range []string{plain, sealed} {
		mustDmloop(t, "unmap", path)
	}
	endGuard(t, "TERM")
	nothingLeft(t, images...)
}

// A device that is suspended below the host is named.
func TestSuspendedHost(t *testing.T) {
	_, images := frozenWorld(t, ext4Host)
	resumed := false
	resume := func() {
		if !resumed {
			resumed = true
			vmtest.Must(t, "dmsetup", "resume", "host")
		}
	}
	vmtest.Must(t, "dmsetup", "suspend", "--nolockfs", "--noflush", "host") // the file system does not notice
	t.Cleanup(resume)
	for _, args := range [][]string{{"map", images[2]}, {"pin", images[2]}, {"seal", images[2]}, {"unmap", "plain"}} {
		r := ends(t, resume, 5, args...)
		if !strings.Contains(r.Stderr, "the device host, on which its file system lies, is suspended") || !strings.Contains(r.Stderr, "dmsetup resume host") {
			t.Errorf("dmloop %s: %s", strings.Join(args, " "), r.Stderr)
		}
	}
	resume()
	mustDmloop(t, "unmap", "plain", "sealed")
	endGuard(t, "TERM")
	nothingLeft(t, images...)
}

// Nothing of the image's path is in memory: to walk it would wait for the disk, with the
// lock held.
func TestSuspendedHostUnread(t *testing.T) {
	disk, dir := vmtest.Disk(t, 0), t.TempDir()
	host := numbered(t, "host", 70, disk)
	vmtest.Mkfs(t, "ext4", host)
	mountAt(t, host, dir)
	image := filepath.Join(dir, "folder", "image.img")
	vmtest.Must(t, "mkdir", filepath.Dir(image))
	expect(t, 0, "create", image, "8M")
	mapIt(t, image, "vol")
	vmtest.Must(t, "umount", dir) // forgets what it read
	mountAt(t, host, dir)
	patientKernel(t)
	resumed := false
	resume := func() {
		if !resumed {
			resumed = true
			vmtest.Must(t, "dmsetup", "resume", "host")
		}
	}
	vmtest.Must(t, "dmsetup", "suspend", "--nolockfs", "--noflush", "host")
	t.Cleanup(resume)
	for _, args := range [][]string{{"unmap", "vol"}, {"boot", "verify", "vol"}} {
		if r := ends(t, resume, 5, args...); !strings.Contains(r.Stderr, "dmsetup resume host") {
			t.Errorf("%q: %s", args, r.Stderr)
		}
	}
	resume()
	expect(t, 0, "unmap", "vol")
	nothingLeft(t, image)
}

// lockedBuffer may be read while somebody writes to it.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// A command that a freeze caught in the middle says after a signal what the matter is, and
// ends with the thaw at the latest. Which of its threads sleeps is chance, so it is tried
// several times.
func TestFrozenInTheMiddle(t *testing.T) {
	for range 4 {
		t.Run("", frozenInTheMiddle)
	}
}

func frozenInTheMiddle(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	path := h.path("sparse.img")
	thaw := func() {}
	t.Cleanup(func() { thaw() })
	for range 10 {
		vmtest.Must(t, "rm", "-f", path)
		vmtest.Must(t, "truncate", "-s", "128M", path)
		cmd := command(t, "dmloop", "provision", path)
		var said lockedBuffer
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		await(t, "the first blocks", time.Minute, func() bool {
			return strings.TrimSpace(vmtest.Must(t, "stat", "-c", "%b", path)) != "0"
		})
		// It stands still meanwhile, or it could be done before all is frozen.
		_ = cmd.Process.Signal(syscall.SIGSTOP) // it may have ended
		vmtest.Must(t, "fsfreeze", "--freeze", h.dir)
		thaw = sync.OnceFunc(func() { vmtest.Must(t, "fsfreeze", "--unfreeze", h.dir) })
		_ = cmd.Process.Signal(syscall.SIGCONT)
		over := false
		await(t, "a call that sleeps", time.Minute, func() bool {
			select {
			case <-ended:
				over = true
			default:
			}
			states, _ := exec.Command("sh", "-c", fmt.Sprintf("cat /proc/%d/task/*/stat", cmd.Process.Pid)).Output()
			return over || regexp.MustCompile(`(?m)\) D `).Match(states)
		})
		if over { // everything was written when it was stopped
			thaw()
			continue
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		await(t, "the last word", time.Minute, func() bool { return strings.Contains(said.String(), "a call into the kernel did not return") })
		thaw()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatal("it did not end")
		}
		if code := cmd.ProcessState.ExitCode(); code != 1 {
			t.Errorf("exit code %d", code)
		}
		expect(t, 0, "provision", path)
		expect(t, 0, "check", path)
		return
	}
	t.Fatal("no run was caught in the middle")
}

// What is looked for in memory are pages of data: the time that takes does not go by the
// size of a sparse file.
func TestSparseCheckIsShort(t *testing.T) {
	h := newHost(t, ext4Host, "shim")
	path := h.path("sparse.img")
	vmtest.Must(t, "truncate", "-s", "128G", path)
	vmtest.Must(t, "dd", "if=/dev/zero", "of="+path, "bs=4096", "count=1", "conv=notrunc", "status=none")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command("strace", "-f", "-qq", "-o", trace, "-e", "trace=mincore", self, "check", path)
	cmd.Env = append(os.Environ(), roleVariable+"=dmloop")
	if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 3 || !strings.Contains(string(out), "hole") {
		t.Errorf("exit code %d: %s", cmd.ProcessState.ExitCode(), out)
	}
	calls, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(calls), "mincore("); n > 12 {
		t.Errorf("%d calls of mincore for a page of data", n)
	}
}
