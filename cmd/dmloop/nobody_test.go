//go:build !vmtest

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// asNobody runs the program as a user who may do nothing, in dir.
func asNobody(t *testing.T, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe") // the way to it may be closed to nobody
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), roleVariable+"="+strings.Join(args, "\x1f"), stateVariable+"="+filepath.Join(dir, "state"))
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// Without rights a command says so (7) or does what needs none; it never fails in a
// way that looks like a fault, and never tells what it has not looked at.
func TestAsNobody(t *testing.T) {
	dir, err := os.MkdirTemp("", "nobody")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	write := func(name string, mode os.FileMode) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("readable", 0o444)
	write("secret", 0)
	for path, mode := range map[string]os.FileMode{"closed": 0, "state": 0, "": 0o555} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(path, 0o700)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"check", "secret"}, 7, "not permitted to open it"},
		{[]string{"check", "closed/image"}, 7, "not permitted"},
		{[]string{"extents", "secret"}, 7, "not permitted"},
		{[]string{"table", "secret"}, 7, "not permitted"},
		{[]string{"map", "secret"}, 7, "sudo"},
		{[]string{"map", "readable"}, 7, "sudo"},
		{[]string{"map", "closed/image"}, 7, "not permitted"},
		{[]string{"provision", "secret"}, 7, "permission denied"},
		{[]string{"provision", "readable"}, 7, "permission denied"},
		{[]string{"grow", "readable", "+1M"}, 7, "only root"},
		{[]string{"create", "new", "1M"}, 7, "permission denied"},
		{[]string{"create", "closed/new", "1M"}, 7, "permission denied"},
		{[]string{"unmap", "x"}, 7, "sudo"},
		{[]string{"list"}, 7, "only root"},
		{[]string{"status", "x"}, 7, "only root"},
		{[]string{"verify"}, 7, "only root"},
		{[]string{"pin", "readable"}, 7, "sudo"},
		{[]string{"unpin", "readable"}, 7, "sudo"},
		{[]string{"shim", "/dev/null", "x"}, 7, "sudo"},
		{[]string{"version"}, 0, ""},
		{[]string{"extents", "readable"}, 0, ""},
	} {
		out, errOut, code := asNobody(t, dir, c.args...)
		if code != c.code || !strings.Contains(errOut, c.says) {
			t.Errorf("%q: exit code %d, want %d with %q\n%s%s", c.args, code, c.code, c.says, out, errOut)
		}
		if strings.Contains(errOut, "panic:") || strings.Contains(errOut, "goroutine") || (code == 0) != (errOut == "") {
			t.Errorf("%q: %s", c.args, errOut)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
		t.Error("create made a file")
	}
}
