package guardrpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/exitcodes"
	"dmloop/internal/helper"
	"dmloop/internal/record"
)

// Unit is the systemd unit that runs the guard.
const Unit = "dmloop-guard.service"

// DetachedIdle is how long a guard without mappings stays when no service manager
// started it.
const DetachedIdle = 5 * time.Minute

const startTimeout = 15 * time.Second

// EnsureRunning connects to the guard of the state directory dir and starts one when
// none runs: as a unit where systemd runs, otherwise as a detached process of this program.
func EnsureRunning(ctx context.Context, dir string) (*Client, error) {
	c, err := Dial(ctx, dir)
	if !errors.Is(err, ErrNoGuard) {
		return c, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return await(ctx, dir, func() (<-chan error, error) {
		if dir == record.DefaultDir && startUnit(ctx) {
			return nil, nil
		}
		return startDetached(dir)
	})
}

// startUnit reports whether systemd started a guard: its unit, or, where no package has
// brought that, one made for the purpose. Either lives on when the session ends in which
// the command was given. Without systemd a detached guard takes its place.
func startUnit(ctx context.Context) bool {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return false
	}
	if start, err := helper.Command(ctx, "systemctl", "start", Unit); err == nil && start.Run() == nil {
		return true
	}
	self, err := os.Executable()
	if err != nil {
		return false
	}
	run, err := helper.Command(ctx, "systemd-run", transient(self)...)
	return err == nil && run.Run() == nil
}

// transient are the arguments with which systemd-run starts this program as the guard.
// It is stopped before local file systems are unmounted, as every service is.
func transient(self string) []string {
	return []string{
		"--quiet", "--collect", "--unit=" + Unit, "--service-type=notify", "--slice=system.slice",
		"--description=Guard of dmloop's mappings, started by a command",
		"--property=Restart=on-failure", "--property=RestartSec=100ms", "--property=OOMScoreAdjust=-900", "--property=Nice=-10",
		"--", self, "guard", "--idle-exit", DetachedIdle.String(),
	}
}

// startDetached runs this program as a guard in a session of its own. It holds
// nothing of ours: no terminal, no working directory, no inherited descriptor.
func startDetached(dir string) (exited <-chan error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(dir, LogName), os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// Descriptors that our own caller left open for us must not live on in the guard.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		return nil, fmt.Errorf("close_range: %w", err)
	}
	cmd := exec.Command(self, "guard", "--state-dir", dir, "--idle-exit", DetachedIdle.String())
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	return done, nil
}

// startAgain is how long a guard that runs, as systemd or the guard's lock says, has to
// listen before one is started once more: it may have been about to end.
const startAgain = 500 * time.Millisecond

// await starts a guard and connects as soon as it listens, which it does once it is
// ready. A guard of ours that ends is not a failure while another, started at the same
// time, may have won; where that one was about to end and does not listen any more, the
// next is started.
func await(ctx context.Context, dir string, start func() (exited <-chan error, err error)) (*Client, error) {
	exited, err := start()
	begun := time.Now()
	for wait := 2 * time.Millisecond; err == nil; wait = min(2*wait, 100*time.Millisecond) {
		c, failed := Dial(ctx, dir)
		if failed == nil {
			return c, nil
		}
		select {
		case exit := <-exited:
			if c, err := Dial(ctx, dir); err == nil {
				return c, nil
			}
			if exit != nil && !beaten(exit) {
				return nil, fmt.Errorf("the guard ended while starting (%w)%s", exit, lastLine(dir))
			}
			exited = nil
		case <-ctx.Done():
			return nil, fmt.Errorf("the guard did not come up: %w%s", failed, lastLine(dir))
		case <-time.After(wait):
		}
		if exited == nil && time.Since(begun) > startAgain {
			exited, err = start()
			begun = time.Now()
		}
	}
	return nil, fmt.Errorf("starting a guard: %w", err)
}

// beaten reports whether a guard ended because another runs or starts.
func beaten(exit error) bool {
	var code *exec.ExitError
	return errors.As(exit, &code) && code.ExitCode() == exitcodes.Busy
}

// lastLine returns the end of a detached guard's log, for error messages.
func lastLine(dir string) string {
	path := filepath.Join(dir, LogName)
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, 512)
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	n, _ := f.ReadAt(buf, max(0, info.Size()-int64(len(buf))))
	lines := bytes.Split(bytes.TrimSpace(buf[:n]), []byte("\n"))
	if last := lines[len(lines)-1]; len(last) > 0 {
		return fmt.Sprintf("; last line of %s: %s", path, last)
	}
	return ""
}
