package image

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"dmloop/extents"

	"golang.org/x/sys/unix"
)

func TestProveSoleOpener(t *testing.T) {
	path := newFile(t, 4096)
	img := openImage(t, path)
	lease, err := AwaitSoleOpener(t.Context(), img.File(), Wait{})
	if errors.Is(err, ErrCannotProve) {
		return // no leases on the file system that the tests run on
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !isRule(err, extents.OpenElsewhere) {
		t.Errorf("a second Open of a leased file: %v", err)
	}
	if err := lease.Release(); err != nil {
		t.Fatal(err)
	}
	for _, flag := range []int{os.O_RDONLY, os.O_WRONLY, os.O_RDWR} {
		other, err := os.OpenFile(path, flag, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := AwaitSoleOpener(t.Context(), img.File(), Wait{}); !isRule(err, extents.OpenElsewhere) {
			t.Errorf("with another descriptor, flags %d: %v", flag, err)
		}
		other.Close()
	}
	// A path descriptor can neither read nor write.
	handle, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(handle)
	lease, err = AwaitSoleOpener(t.Context(), img.File(), Wait{})
	if err != nil {
		t.Fatalf("with an O_PATH descriptor: %v", err)
	}
	if err := lease.Release(); err != nil {
		t.Error(err)
	}
}

func isRule(err error, rule extents.Rule) bool {
	var p *extents.Refusal
	return errors.As(err, &p) && p.Problems[0].Rule == rule
}

func TestMappingKeepsTheLease(t *testing.T) {
	path := newFile(t, 4096)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	page, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	lease, err := AwaitSoleOpener(t.Context(), openImage(t, path).File(), Wait{})
	if err == nil {
		lease.Release()
	}
	if !isRule(err, extents.OpenElsewhere) && !errors.Is(err, ErrCannotProve) {
		t.Errorf("with a mapping: %v", err)
	}
}

// A lease is broken by SIGIO, which must not end the program that holds it.
func TestBreakingTheLeaseIsSurvived(t *testing.T) {
	path := newFile(t, 4096)
	img := openImage(t, path)
	lease, err := AwaitSoleOpener(t.Context(), img.File(), Wait{})
	if errors.Is(err, ErrCannotProve) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	cat := exec.Command("cat", path)
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for kind := unix.F_WRLCK; kind == unix.F_WRLCK && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if kind, err = unix.FcntlInt(img.File().Fd(), unix.F_GETLEASE, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := lease.Release(); err != nil {
		t.Fatal(err)
	}
	if err := cat.Wait(); err != nil {
		t.Errorf("cat: %v", err)
	}
}

func TestOpeners(t *testing.T) {
	path := newFile(t, 4096)
	img := openImage(t, path)
	none, err := Openers(img.File())
	if err != nil || len(none) != 0 {
		t.Errorf("nobody else has it open, but: %v, %v", none, err)
	}
	tail := exec.Command("tail", "-f", path)
	out, err := tail.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tail.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { tail.Process.Kill(); tail.Wait() }()
	if _, err := out.Read(make([]byte, 1)); err != nil { // it has read, so it is open
		t.Fatal(err)
	}
	openers, err := Openers(img.File())
	want := Opener{PID: tail.Process.Pid, Comm: "tail", How: "open"}
	if err != nil || !slices.Equal(openers, []Opener{want}) {
		t.Errorf("Openers = %v, %v, want %v", openers, err, want)
	}
	if p := openElsewhere(img.File(), nil); !strings.Contains(p.Message, want.String()) {
		t.Errorf("the problem does not name %v: %s", want, p.Message)
	}
}

func TestParseMaps(t *testing.T) {
	const text = `55d0c0a00000-55d0c0a21000 rw-p 00000000 00:00 0                          [heap]
7f1b2c000000-7f1b2c001000 rw-s 00000000 07:00 12                         /mnt/a b.img
7f1b2c001000-7f1b2c002000 r--s 00001000 07:00 12                         /mnt/a b.img (deleted)
7f1b2c003000-7f1b2c004000 r--p 00001000 fe:00 1234                       /usr/lib/x.so
7ffc12345000-7ffc12366000 rw-p 00000000 00:00 0 
`
	got := parseMaps(text, 12)
	if want := []string{"7f1b2c000000-7f1b2c001000", "7f1b2c001000-7f1b2c002000"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := parseMaps(text, 123); got != nil {
		t.Errorf("inode 123 is not there, but %v", got)
	}
}

// Somebody who waits for the lease to end shows, and is waited for in his turn.
func TestWaitingForALease(t *testing.T) {
	path := newFile(t, 4096)
	img := openImage(t, path)
	lease, err := AwaitSoleOpener(t.Context(), img.File(), Wait{})
	if errors.Is(err, ErrCannotProve) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if whole, err := lease.Whole(); !whole || err != nil {
		t.Errorf("whole %v, %v", whole, err)
	}
	tail := exec.Command("tail", "-f", path)
	out, err := tail.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tail.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { tail.Process.Kill(); tail.Wait() }()
	for whole := true; whole; time.Sleep(time.Millisecond) {
		if whole, err = lease.Whole(); err != nil {
			t.Fatal(err)
		}
	}
	if err := lease.Release(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // he is in
		t.Fatal(err)
	}
	if whole, err := lease.Whole(); whole || err != nil {
		t.Errorf("given back, and whole %v, %v", whole, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	said := ""
	_, err = AwaitSoleOpener(ctx, img.File(), Wait{Patience: time.Hour, Say: func(whom string) { said = whom; cancel() }})
	if !errors.Is(err, context.Canceled) || !strings.Contains(said, "tail (pid ") {
		t.Errorf("waited for %q: %v", said, err)
	}
	go func() { time.Sleep(20 * time.Millisecond); tail.Process.Kill() }()
	lease, err = AwaitSoleOpener(context.Background(), img.File(), Wait{Patience: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // what is gone is no error
		if err := lease.Release(); err != nil {
			t.Error(err)
		}
	}
}

// FuzzParseMaps writes a line as the kernel does, which escapes nothing but the newline
// in the name (show_map_vma in fs/proc/task_mmu.c), and reads it again.
func FuzzParseMaps(f *testing.F) {
	for _, name := range []string{"x", "a b", "a\u00a012 b", "\u3000", "a\n7f0-7f1 rw-s 00000000 fe:00 12 /x", "x (deleted)", "\r", strings.Repeat("long", 20_000)} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		name = strings.ReplaceAll(name, "\n", `\012`)
		text := "7f1b2c002000-7f1b2c003000 r--p 00000000 fe:00 7                       /" + name + "\n" +
			"7f1b2c000000-7f1b2c001000 rw-s 00000000 fe:00 12                      /" + name + "\n"
		if got := parseMaps(text, 12); !slices.Equal(got, []string{"7f1b2c000000-7f1b2c001000"}) {
			t.Errorf("%q: %q", text, got)
		}
	})
}
