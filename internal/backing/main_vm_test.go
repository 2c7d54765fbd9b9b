//go:build vmtest

package backing

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"dmloop/extents"
	"dmloop/internal/vmtest"
)

// killVariable makes the test binary, started by itself, do one operation and kill
// itself on the way: "create PATH SIZE N" or "provision PATH 0 N" for the N-th report
// of progress.
const killVariable = "DMLOOP_TEST_KILL"

func TestMain(m *testing.M) {
	if job := os.Getenv(killVariable); job != "" {
		runAndDie(job)
		return
	}
	vmtest.Main(m)
}

func runAndDie(job string) {
	var what, path string
	var size extents.Bytes
	var at int
	if _, err := fmt.Sscan(job, &what, &path, &size, &at); err != nil {
		panic(err)
	}
	reports := 0
	opts := Options{Progress: func(done, total extents.Bytes) {
		if reports++; reports == at {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}}
	var err error
	if what == "create" {
		err = Create(context.Background(), path, size, opts)
	} else {
		_, err = provisionAt(context.Background(), path, opts)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// die runs one operation in a process that kills itself, and reports whether it came
// to that. Any other failure ends the test.
func die(t *testing.T, what, path string, size extents.Bytes, at int) bool {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	job := strings.Join([]string{what, path, strconv.FormatInt(int64(size), 10), strconv.Itoa(at)}, " ")
	cmd.Env = append(os.Environ(), killVariable+"="+job)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%s: %v: %s", job, err, out)
	}
	return true
}
