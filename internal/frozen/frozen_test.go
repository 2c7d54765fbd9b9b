package frozen

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A file system that is not frozen says so at once, of whatever kind the descriptor is,
// and nothing is changed or left behind.
func TestAskOfWhatIsNotFrozen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	var before, after unix.Stat_t
	if err := unix.Stat(path, &before); err != nil {
		t.Fatal(err)
	}
	descriptors := count(t)
	for _, flags := range []int{unix.O_RDONLY, unix.O_PATH, unix.O_PATH | unix.O_NOFOLLOW} {
		for _, p := range []string{path, filepath.Dir(path), "/proc/version"} {
			fd, err := unix.Open(p, flags|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			var many sync.WaitGroup
			for range 20 {
				many.Go(func() {
					if err := Ask(t.Context(), fd, time.Minute); err != nil {
						t.Errorf("%s, flags %#x: %v", p, flags, err)
					}
				})
			}
			many.Wait()
			unix.Close(fd)
		}
	}
	if err := unix.Stat(path, &after); err != nil || after != before {
		t.Errorf("%+v became %+v, %v", before, after, err)
	}
	for end := time.Now().Add(10 * time.Second); count(t) != descriptors; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d descriptors became %d", descriptors, count(t))
		}
	}
	if err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WALL|unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("processes are left: %v", err)
	}
}

func count(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A process that only waits for a processor, or has ended, is not taken for one that a freeze
// keeps; one that sleeps, was stopped or cannot be seen is.
func TestAsleep(t *testing.T) {
	cmd := exec.Command("sh", "-c", "trap 'exec sleep 60' USR1; echo ready; while :; do :; done")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = io.ReadFull(out, make([]byte, len("ready\n")))
	}
	if err != nil {
		t.Fatal(err)
	}
	becomes := func(want bool, what string) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); asleep(cmd.Process.Pid) != want; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: asleep is %v", what, !want)
			}
		}
	}
	becomes(false, "a loop")
	if err := cmd.Process.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	becomes(true, "sleep(1)")
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	becomes(true, "stopped")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	becomes(false, "killed, and not waited for")
	_ = cmd.Wait() // it was killed
	becomes(true, "not there")
}
