package udev

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/ioctl"
)

// running returns a host on which udevd seems to run.
func running(t *testing.T) Host {
	t.Helper()
	t.Setenv(DisableVariable, "") // so that it is restored
	if err := os.Unsetenv(DisableVariable); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	h := Host{
		Run: filepath.Join(root, "run"), Proc: "/proc", Dev: filepath.Join(root, "dev"), Sys: filepath.Join(root, "sys"),
		Rules: []string{filepath.Join(root, "etc"), filepath.Join(root, "lib")},
	}
	write(t, filepath.Join(h.Run, "udev", "control"), "")
	write(t, filepath.Join(h.Rules[1], "95-dm-notify.rules"), `ENV{DM_COOKIE}=="?*", RUN+="/sbin/dmsetup udevcomplete $env{DM_COOKIE}"`)
	h.Proc = filepath.Join(root, "proc")
	for _, process := range []string{"self", "1"} {
		dir := filepath.Join(h.Proc, process, "ns")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("ipc:[4026531839]", filepath.Join(dir, "ipc")); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRunning(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(t *testing.T, h Host)
		want  bool
	}{
		{"running", func(*testing.T, Host) {}, true},
		{"disabled", func(t *testing.T, _ Host) { t.Setenv(DisableVariable, "") }, false},
		{"no udevd", func(t *testing.T, h Host) { remove(t, filepath.Join(h.Run, "udev", "control")) }, false},
		{"no rule", func(t *testing.T, h Host) { remove(t, filepath.Join(h.Rules[1], "95-dm-notify.rules")) }, false},
		{"rule hidden by an empty file", func(t *testing.T, h Host) { write(t, filepath.Join(h.Rules[0], "95-dm-notify.rules"), "") }, false},
		{"rule hidden by a link", func(t *testing.T, h Host) {
			if err := os.MkdirAll(h.Rules[0], 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("/dev/null", filepath.Join(h.Rules[0], "95-dm-notify.rules")); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"rule replaced", func(t *testing.T, h Host) {
			write(t, filepath.Join(h.Rules[0], "95-dm-notify.rules"), "# mine\nRUN+=\"/sbin/dmsetup udevcomplete $env{DM_COOKIE}\"\n")
		}, true},
		{"another namespace", func(t *testing.T, h Host) {
			path := filepath.Join(h.Proc, "self", "ns", "ipc")
			remove(t, path)
			if err := os.Symlink("ipc:[1]", path); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"process 1 unreadable", func(t *testing.T, h Host) { remove(t, filepath.Join(h.Proc, "1", "ns", "ipc")) }, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := running(t)
			test.spoil(t, h)
			got, why := h.Running()
			if got != test.want || (why == "") != test.want {
				t.Errorf("got %v, %q", got, why)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// begin starts a transaction with a real semaphore.
func begin(t *testing.T) *Transaction {
	t.Helper()
	transaction, err := running(t).Begin(nil)
	if err != nil {
		t.Fatal(err)
	}
	if transaction.base == 0 {
		t.Fatal("no semaphore was made")
	}
	return transaction
}

func checkGone(t *testing.T, semaphore ioctl.Semaphore) {
	t.Helper()
	if n, err := semaphore.Value(); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EIDRM) {
		t.Errorf("the semaphore is still there: %d, %v", n, err)
	}
}

func TestTransaction(t *testing.T) {
	tx := begin(t)
	semaphore := tx.semaphore
	first, second := tx.Add(), tx.Add()
	if first != second || first>>16 != 0x40 || first&0xffff == 0 {
		t.Errorf("event numbers %#x, %#x", first, second)
	}
	if third := tx.AddWith(LowPriority | UseContent); third != first|0x110<<16 {
		t.Errorf("with flags %#x", third)
	}
	tx.Done()
	if n, err := semaphore.Value(); err != nil || n != 3 {
		t.Errorf("value %d, %v", n, err)
	}
	tx.Done()           // the second request generated no uevent
	start := time.Now() // before the other one counts its time, or it is the shorter
	go func() {
		time.Sleep(50 * time.Millisecond)
		_ = semaphore.Add(-1) // as dmsetup udevcomplete does
	}()
	if err := tx.Wait(); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d < 50*time.Millisecond || d > time.Minute {
		t.Errorf("waited %v", d)
	}
	checkGone(t, semaphore)
	if err := tx.Wait(); err != nil {
		t.Errorf("a second Wait: %v", err)
	}
}

func TestTransactionFailed(t *testing.T) {
	tx := begin(t)
	semaphore := tx.semaphore
	tx.Add()
	if err := tx.Fail(); err != nil {
		t.Error(err)
	}
	if err := tx.Wait(); err != nil {
		t.Error(err)
	}
	checkGone(t, semaphore)
}

func TestTransactionTimeout(t *testing.T) {
	tx := begin(t)
	semaphore := tx.semaphore
	tx.Add()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := tx.WaitContext(ctx); !errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d > time.Minute {
		t.Errorf("waited %v", d)
	}
	checkGone(t, semaphore)
}

// TestTransactionAborted checks what dmsetup udevcomplete_all does to a waiter.
func TestTransactionAborted(t *testing.T) {
	for _, early := range []bool{true, false} {
		tx := begin(t)
		semaphore := tx.semaphore
		tx.Add()
		if early {
			if err := semaphore.Remove(); err != nil {
				t.Fatal(err)
			}
			tx.Add() // must not panic or be waited for
		} else {
			go func() {
				time.Sleep(50 * time.Millisecond)
				_ = semaphore.Remove()
			}()
		}
		if err := tx.Wait(); err != nil {
			t.Errorf("early %v: %v", early, err)
		}
		checkGone(t, semaphore)
	}
}

// TestTransactionWithoutUdev checks that nothing is waited for, and that the event
// is marked as genuine all the same.
func TestTransactionWithoutUdev(t *testing.T) {
	h := running(t)
	remove(t, filepath.Join(h.Run, "udev", "control"))
	tx, err := h.Begin(nil)
	if err != nil {
		t.Fatal(err)
	}
	if nr := tx.Add(); nr != 0x400000 {
		t.Errorf("event number %#x", nr)
	}
	tx.Done()
	if err := errors.Join(tx.Fail(), tx.Wait()); err != nil {
		t.Error(err)
	}
}
