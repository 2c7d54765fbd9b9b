package helper

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// program makes a program that prints its own name.
func program(t *testing.T, folder, name string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(folder, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho fake\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

func TestCommandDoesNotAskThePath(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"env", "systemctl", "no-such-program"} {
		program(t, dir, name, 0o755)
	}
	t.Setenv("PATH", dir)
	if _, err := Command(t.Context(), "no-such-program"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("a program in $PATH: %v", err)
	}
	cmd, err := Command(t.Context(), "env")
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), "PATH="+strings.Join(Folders, ":")+"\n") || strings.Contains(string(out), dir) {
		t.Errorf("%s is told %q, %v", cmd.Path, out, err)
	}
}

func TestFindWantsRootsPrograms(t *testing.T) {
	me := uint32(os.Getuid())
	good, open := t.TempDir(), t.TempDir()
	if err := errors.Join(os.Chmod(good, 0o755), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	right := program(t, good, "right", 0o755)
	program(t, good, "open", 0o757)
	program(t, good, "data", 0o644)
	program(t, open, "right", 0o755)
	if err := os.Symlink("open", filepath.Join(good, "link")); err != nil {
		t.Fatal(err)
	}
	if got, err := find([]string{filepath.Join(good, "absent"), good}, "right", me); err != nil || got != right {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := find([]string{good}, "right", me+1); !errors.Is(err, ErrUntrusted) {
		t.Errorf("a stranger's: %q, %v", got, err)
	}
	for _, name := range []string{"open", "link"} {
		if got, err := find([]string{good}, name, me); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got, err := find([]string{open, good}, "right", me); !errors.Is(err, ErrUntrusted) {
		t.Errorf("in a folder that is open to all: %q, %v", got, err)
	}
	for _, name := range []string{"data", "", "../right", "/bin/sh", "absent"} {
		if got, err := find([]string{good}, name, me); err == nil {
			t.Errorf("%q was found as %s", name, got)
		}
	}
}
