//go:build vmtest

package watch

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/vmtest"
)

func TestMain(m *testing.M) { vmtest.Main(m) }

// hostFile makes a file on a file system of the guest's own: the root's overlay
// shows inodes of its own.
func hostFile(t *testing.T) *os.File {
	vmtest.RequireGuest(t)
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "ext4", disk)
	return image(t, filepath.Join(vmtest.Mount(t, disk), "image"))
}

func TestFullKernelWithoutGate(t *testing.T) {
	vmtest.RequireGuest(t)
	if g, err := NewGate(); !errors.Is(err, ErrNoGate) {
		t.Errorf("NewGate: %v, %v", g, err)
	}
}

// Whether the kernel can deny opens is asked without a word in its log, and the answer is
// the one that trying gives.
func TestKernelDenies(t *testing.T) {
	vmtest.RequireGuest(t)
	before := vmtest.Must(t, "cat", "/proc/sys/kernel/tainted")
	denies, err := KernelDenies()
	if err != nil {
		t.Fatal(err)
	}
	if now := vmtest.Must(t, "cat", "/proc/sys/kernel/tainted"); now != before {
		t.Errorf("tainted: %s, before %s", now, before)
	}
	if log := vmtest.Must(t, "dmesg"); strings.Contains(log, "fanotify") {
		t.Error("the kernel says something of fanotify")
	}
	g, err := NewGate()
	if err == nil {
		g.Close()
	}
	if denies != (err == nil) || denies == errors.Is(err, ErrNoGate) {
		t.Errorf("KernelDenies: %v; NewGate: %v", denies, err)
	}
}

func TestQemuGate(t *testing.T) {
	f := hostFile(t)
	g, err := NewGate()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	cat := func() string {
		out, _ := exec.Command("cat", f.Name()).CombinedOutput()
		return string(out)
	}
	if err := g.Mark(f); err != nil {
		t.Fatal(err)
	}
	if out := cat(); !strings.Contains(out, "not permitted") {
		t.Errorf("cat of a marked file: %q", out)
	}
	d := <-g.Denials()
	if id, _ := IDOf(f); d.File != id || d.PID == 0 || d.Times != 1 || g.Denied(id) != 1 || g.AllDenied() != 1 ||
		(d.Program != "cat" || d.UID != 0) && (d.Program != "?" || d.UID != Nobody) { // it may be gone by then
		t.Errorf("the denial is %+v", d)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := g.Mark(null); !errors.Is(err, ErrNotRegular) {
		t.Errorf("a mark on a device: %v", err)
	}
	own, err := os.Open(f.Name())
	if err != nil {
		t.Errorf("our own open: %v", err)
	}
	own.Close()
	cmd := exec.Command("sh", "-c", "sleep 0.3; exec cat "+f.Name())
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	revoke := g.Allow(cmd.Process.Pid)
	if err := cmd.Wait(); err != nil || out.String() != "image" {
		t.Errorf("an allowed open: %v, %q", err, out.String())
	}
	revoke()
	if g.isAllowed(cmd.Process.Pid) {
		t.Error("the leave was not taken back")
	}
	if err := g.Unmark(f); err != nil {
		t.Fatal(err)
	}
	if err := g.Unmark(f); err != nil {
		t.Errorf("a second Unmark: %v", err)
	}
	if out := cat(); out != "image" {
		t.Errorf("cat after Unmark: %q", out)
	}
}

// An opener must not make the gate wait for the lease of the command that the gate
// protects, and must not be let in by it.
func TestQemuGateWhileALeaseIsHeld(t *testing.T) {
	f := hostFile(t)
	g, err := NewGate()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := g.Mark(f); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	out, _ := exec.Command("cat", f.Name()).CombinedOutput()
	if took := time.Since(start); took > 5*time.Second || !strings.Contains(string(out), "not permitted") {
		t.Errorf("cat took %s: %q", took, out)
	}
	// The refused open has asked for the lease back, down to a reader's, within
	// lease-break-time; until then it is held.
	if kind, err := unix.FcntlInt(f.Fd(), unix.F_GETLEASE, 0); err != nil || kind == unix.F_UNLCK {
		t.Errorf("the lease is %d, %v", kind, err)
	}
}

// However many open one file, who opens another one waits for a few of them only.
func TestQemuGateTakesTurns(t *testing.T) {
	stormy := hostFile(t)
	quiet := image(t, filepath.Join(filepath.Dir(stormy.Name()), "quiet"))
	g, err := NewGate()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for _, f := range []*os.File{quiet, stormy} {
		if err := g.Mark(f); err != nil {
			t.Fatal(err)
		}
	}
	id, err := IDOf(quiet)
	if err != nil {
		t.Fatal(err)
	}
	g.denials.mu.Lock() // the gate stands still with the first denial that it notes
	var all sync.WaitGroup
	open := func(f *os.File, times int) {
		script := fmt.Sprintf("for i in $(seq %d); do cat %s & done; wait", times, f.Name())
		all.Go(func() { exec.Command("sh", "-c", script).Run() })
	}
	waiting := func(f *os.File) int {
		id, err := IDOf(f)
		if err != nil {
			t.Fatal(err)
		}
		g.marking.Lock()
		defer g.marking.Unlock()
		bytes, err := unix.IoctlGetInt(g.marked[id].fd, unix.TIOCINQ) // FIONREAD
		if err != nil {
			t.Fatal(err)
		}
		return bytes / eventSize
	}
	open(stormy, 2*perTurn+tellBurst)
	for waiting(stormy) < perTurn+tellBurst { // the gate took some
		time.Sleep(10 * time.Millisecond)
	}
	open(quiet, 1)
	for waiting(quiet) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	g.denials.mu.Unlock()
	all.Wait()
	before := 0 // of which no more than tellBurst are told one by one
	for d := range g.Denials() {
		if d.File == id {
			break
		}
		before++
	}
	if before > perTurn { // the gate had taken so many when it stood still
		t.Errorf("%d opens of another file were answered before", before)
	}
}

func TestSwaps(t *testing.T) {
	vmtest.RequireGuest(t)
	changes := make(chan struct{}, 10)
	s, err := NewSwaps(func() { changes <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	disk := vmtest.Disk(t, 0)
	vmtest.Must(t, "mkswap", disk)
	for _, program := range []string{"swapon", "swapoff", "swapon", "swapoff"} {
		vmtest.Must(t, program, disk)
		select {
		case <-changes:
		case <-time.After(5 * time.Second):
			t.Fatalf("%s was not heard", program)
		}
	}
	time.Sleep(50 * time.Millisecond)
	if len(changes) > 0 {
		t.Errorf("%d changes too many were heard", len(changes))
	}
}

// deviceHints passes what it hears on.
type deviceHints chan string

func (h deviceHints) Device(dev dmtable.Device, action string) { h <- action + " " + dev.String() }
func (h deviceHints) LostDevices(why string)                   { h <- "lost: " + why }

func TestUevents(t *testing.T) {
	vmtest.RequireGuest(t)
	hints := make(deviceHints, 1000)
	u, err := NewUevents(hints)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	path := vmtest.DmsetupCreate(t, "uevents", "0 8 zero")
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	want := "change " + dmtable.DeviceOf(st.Rdev).String()
	for drained := false; !drained; { // creation sends its own
		select {
		case <-hints:
		case <-time.After(200 * time.Millisecond):
			drained = true
		}
	}
	vmtest.Must(t, "dmsetup", "load", "uevents", "--table", "0 8 error")
	vmtest.Must(t, "dmsetup", "resume", "--noudevsync", "uevents")
	for {
		select {
		case got := <-hints:
			if got == want {
				return
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%q was not heard", want)
		}
	}
}

// Whoever opens an image is told of on every host file system, and is no second opener's
// victim: the guard has nothing open for it that a lease would see.
func TestOpensAreTold(t *testing.T) {
	vmtest.RequireGuest(t)
	for _, fs := range []string{"ext4", "xfs", "f2fs", "btrfs"} {
		t.Run(fs, func(t *testing.T) {
			disk := vmtest.Disk(t, 0)
			vmtest.Mkfs(t, fs, disk)
			dir := vmtest.Mount(t, disk)
			f := image(t, filepath.Join(dir, "image"))
			other := image(t, filepath.Join(dir, "other"))
			var h heard
			w, err := NewFiles(&h)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if err := w.Watch("A", f, f.Name()); err != nil {
				t.Fatal(err)
			}
			h.silent(t)
			vmtest.Must(t, "cat", other.Name())
			h.silent(t)
			for range 3 {
				vmtest.Must(t, "cat", f.Name())
				h.await(t, "A: ", "open", "close")
				if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
					t.Errorf("the lease: %v", err)
				}
				if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
					t.Errorf("giving it back: %v", err)
				}
			}
			vmtest.Must(t, "sh", "-c", "exec 3<> "+f.Name())
			h.await(t, "A: ", "close-write")
			w.Forget("A")
			vmtest.Must(t, "cat", f.Name())
			h.silent(t)
		})
	}
}

// In a subvolume of btrfs kernels before 6.8 tell of no open, and Watch says so; what changes
// is told all the same.
func TestOpensInASubvolume(t *testing.T) {
	vmtest.RequireGuest(t)
	disk := vmtest.Disk(t, 0)
	vmtest.Mkfs(t, "btrfs", disk)
	dir := filepath.Join(vmtest.Mount(t, disk), "sub")
	vmtest.Must(t, "btrfs", "subvolume", "create", dir)
	f := image(t, filepath.Join(dir, "image"))
	var h heard
	w, err := NewFiles(&h)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	err = w.Watch("A", f, f.Name())
	t.Logf("Watch: %v", err)
	if err != nil && (!errors.Is(err, ErrOpensUntold) || !errors.Is(err, unix.EXDEV)) {
		t.Fatal(err)
	}
	if err == nil {
		vmtest.Must(t, "cat", f.Name())
		h.await(t, "A: ", "open", "close")
	}
	if err := os.Chmod(f.Name(), 0o644); err != nil {
		t.Fatal(err)
	}
	h.await(t, "A: attrib")
}
