package vmtest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// inGuest is the name of the guest's kernel, empty on a host.
func inGuest() string { return os.Getenv("DMLOOP_GUEST") }

// RequireGuest fails the test when it does not run in a guest: there it would
// change the machine, and a skip would look like a pass.
func RequireGuest(t testing.TB) {
	t.Helper()
	if inGuest() == "" {
		t.Fatal("not in a guest: run with go run ./internal/cmd/guest (docs/testing.md)")
	}
	mountsEnd(t)
}

// Kernel returns the name of the guest's kernel: uml, 6.1, 6.12 or new, or with
// arm64 arm64 or arm64-16k, which are 6.12.
func Kernel(t testing.TB) string {
	t.Helper()
	RequireGuest(t)
	return inGuest()
}

// A Result is what a program left behind.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Run runs a program and returns its output and exit code, whatever it is.
func Run(t testing.TB, args ...string) Result {
	t.Helper()
	return RunInput(t, "", args...)
}

// RunInput is Run with text on standard input.
func RunInput(t testing.TB, input string, args ...string) Result {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return Result{Stdout: out.String(), Stderr: errOut.String(), Code: cmd.ProcessState.ExitCode()}
}

// Must runs a program that has to succeed and returns its standard output.
func Must(t testing.TB, args ...string) string {
	t.Helper()
	return must(t, "", args...)
}

func must(t testing.TB, input string, args ...string) string {
	t.Helper()
	r := RunInput(t, input, args...)
	if r.Code != 0 {
		t.Fatalf("%s: exit code %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}
