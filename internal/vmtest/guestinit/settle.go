package guestinit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest/vm"
)

// settle does what a booted system has done before its first program runs.
func settle(job vm.Job, release string) error {
	link := filepath.Join("/lib/modules", release)
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(link); err != nil {
		return err
	}
	if err := os.Symlink(visible(job.Modules), link); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/lock", 0o755); err != nil {
		return err
	}
	// From here on the log is worth the time it takes.
	if err := os.WriteFile("/proc/sys/kernel/printk", []byte("8\n"), 0); err != nil {
		return err
	}
	// Ctrl-Alt-Del is a signal to process 1 (quitOnInterrupt) and no reboot.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		return fmt.Errorf("reboot(CAD_OFF): %w", err)
	}
	if err := unix.Sethostname([]byte("guest")); err != nil {
		return fmt.Errorf("sethostname: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	args := append([]string{"/sbin/modprobe", "-a"}, job.Preload...)
	code, err := runCommand(vm.Command{Args: args, Dir: "/"}, nil, os.Stderr, os.Stderr)
	if err != nil || code != 0 {
		return fmt.Errorf("modprobe %v: exit code %d, %v", job.Preload, code, err)
	}
	return nil
}

// loopbackUp makes 127.0.0.1 usable.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// runCommand runs c, ends whatever it left running, and returns its exit code:
// that of a shell, 128+n for a death by signal n.
func runCommand(c vm.Command, env []string, stdout, stderr *os.File) (int, error) {
	cmd := exec.Command(visible(c.Args[0]), c.Args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = visible(c.Dir), env, stdout, stderr
	if err := cmd.Start(); err != nil {
		return 127, err
	}
	defer quitOnInterrupt(cmd.Process.Pid)()
	code, err := reapUntil(cmd.Process.Pid)
	if err != nil {
		return 127, err
	}
	// Process 1 may signal all others: a daemon that a test left must not meet the next test.
	if err := unix.Kill(-1, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return code, fmt.Errorf("kill leftover processes: %w", err)
	}
	return code, nil
}

// quitOnInterrupt sends SIGQUIT to pid when this process is interrupted, which is what
// the kernel makes of Ctrl-Alt-Del, until the returned function is called.
func quitOnInterrupt(pid int) (stop func()) {
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	go func() {
		for range interrupts {
			if err := unix.Kill(pid, unix.SIGQUIT); err != nil {
				fmt.Fprintf(os.Stderr, "guest: SIGQUIT to process %d: %v\n", pid, err)
			}
		}
	}()
	return func() {
		signal.Stop(interrupts)
		close(interrupts)
	}
}

// reapUntil waits for pid and buries all other children on the way: orphans
// become children of process 1.
func reapUntil(pid int) (int, error) {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait4: %w", err)
		case got != pid:
		case ws.Signaled():
			return 128 + int(ws.Signal()), nil
		case ws.Exited():
			return ws.ExitStatus(), nil
		}
	}
}

// visible returns the path under which a file of the host can be reached: the
// guest's own /tmp and /run hide the host's, which stay below /host.
func visible(path string) string {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return filepath.Join("/host", path)
	}
	return path
}
