//go:build runner

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// build makes the runner and returns its path.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "guest")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// output is what a program has printed so far.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// start returns a runner of a guest whose files go into a folder of the test.
func start(t *testing.T, runner string, args ...string) (cmd *exec.Cmd, temp string, out, errOut *output) {
	t.Helper()
	temp = t.TempDir()
	out, errOut = new(output), new(output)
	cmd = exec.Command(runner, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+temp)
	cmd.Stdout, cmd.Stderr = out, errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, temp, out, errOut
}

func wait(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}

func checkClean(t *testing.T, temp string) {
	t.Helper()
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left in the temporary folder: %v, %v", left, err)
	}
}

func TestRunnerVerdicts(t *testing.T) {
	runner := build(t)
	for _, c := range []struct {
		name    string
		options string
		script  string
		code    int
		stdout  string
		stderr  string // a part
	}{
		{"success", "", "echo out; echo err >&2", 0, "out\n", "err\n"},
		{"exit code", "", "exit 7", 7, "", "exit code 7"},
		{"signal", "", "kill -9 $$", 137, "", "exit code 137"},
		{"environment", "-env X=y -disks 1", "echo $X $DMLOOP_DISKS $DMLOOP_GUEST", 0, "y /dev/ubda uml\n", ""},
		{"hang", "-timeout 5s", "sleep 1000", 125, "", "timed out after 5s"},
		{"silence", "-silence 2s", "sleep 1000", 131, "", "exit code 131"},
		{"silence is broken", "-silence 2s", "trap 'echo awake; exit 3' QUIT; while :; do sleep 0.1; done", 3, "awake\n", ""},
		{"silence goes on", "-silence 2s", "trap '' QUIT; sleep 1000", 125, "", "said nothing for 2s"},
		{"end without a report", "", "echo o >/proc/sysrq-trigger; sleep 1000", 125, "", "without an exit code"},
		{"panic", "", "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 1000", 125, "", "Kernel panic"},
		{"fault", "", "echo '<4>WARNING: made up' >/dev/kmsg", 125, "", "WARNING: made up"},
		{"fault allowed", "-allow-warn", "echo '<4>WARNING: made up' >/dev/kmsg", 0, "", ""},
		{"impossible machine", "-cpus 2", "true", 125, "", "has one processor"},
		{"no such kernel", "-kernel 2.4", "true", 125, "", "unknown kernel"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append(strings.Fields(c.options), "--", "/bin/sh", "-c", c.script)
			cmd, temp, out, errOut := start(t, runner, args...)
			if code := wait(t, cmd); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			if out.String() != c.stdout {
				t.Errorf("standard output %q, want %q", out, c.stdout)
			}
			if !strings.Contains(errOut.String(), c.stderr) {
				t.Errorf("standard error %q does not say %q", errOut, c.stderr)
			}
			checkClean(t, temp)
		})
	}
}

func TestRunnerEndsWithItsGuest(t *testing.T) {
	runner := build(t)
	for _, kernel := range []string{"uml", "6.1"} {
		t.Run(kernel, func(t *testing.T) {
			cmd, temp, out, errOut := start(t, runner, "-kernel", kernel, "--", "/bin/sh", "-c", "echo up; sleep 1000")
			// The kernel may have to be fetched first.
			for end := time.Now().Add(5 * time.Minute); out.String() == "" && time.Now().Before(end); {
				time.Sleep(50 * time.Millisecond)
			}
			if out.String() != "up\n" {
				t.Errorf("the guest said %q", out)
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if code := wait(t, cmd); code != 125 || !strings.Contains(errOut.String(), "interrupted") {
				t.Errorf("exit code %d, %s", code, errOut)
			}
			checkClean(t, temp)
			// Its processes had the folder as their working directory.
			links, err := filepath.Glob("/proc/[0-9]*/cwd")
			if err != nil {
				t.Fatal(err)
			}
			for _, link := range links {
				if dir, err := os.Readlink(link); err == nil && strings.HasPrefix(dir, temp) {
					t.Errorf("%s still runs in %s", filepath.Dir(link), dir)
				}
			}
		})
	}
}

func TestRunnersSideBySide(t *testing.T) {
	runner := build(t)
	a, _, outA, _ := start(t, runner, "--", "/bin/sh", "-c", "sleep 2; echo a")
	b, _, outB, _ := start(t, runner, "--", "/bin/sh", "-c", "sleep 2; echo b")
	if wait(t, a) != 0 || wait(t, b) != 0 || outA.String() != "a\n" || outB.String() != "b\n" {
		t.Errorf("%q, %q", outA, outB)
	}
}
