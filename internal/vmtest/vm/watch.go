package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const logTail = 60 // lines of the kernel log in an error

// boot starts the guest and waits for its end.
func boot(ctx context.Context, c Config, dir string, argv, env []string) (Result, error) {
	// The kernel ends a guest with the thread that started it (Pdeathsig).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	log, err := os.OpenFile(kernelLog(dir), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return Result{}, err
	}
	defer log.Close()

	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = log, log
	// A User Mode Linux guest is a family of processes: end them together,
	// and also when the runner itself is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }

	res := Result{Codes: make([]int, 0, len(c.Commands))}
	start := time.Now()
	done, isReady, complaint := false, false, ""
	ready := make(chan struct{})
	handle := func(r Report) {
		switch r.Kind {
		case "ready":
			res.Boot, res.Release, isReady = time.Since(start), r.Text, true
			close(ready)
		case "exit":
			res.Codes = append(res.Codes, r.Code)
			if c.Exited != nil {
				c.Exited(r.Command, r.Code)
			}
		case "error":
			complaint = r.Text
		case "done":
			done = true
		}
	}
	pinned := func(run func() error) (func(), error) { return func() {}, run() }
	if c.Kernel == KernelUML {
		pinned = OneCPU
	}
	var alive pulse
	var wait func() error
	release, err := pinned(func() (err error) {
		wait, err = connect(cmd, alive.through(c.Stdout), alive.through(c.Stderr), handle)
		return err
	})
	if err != nil {
		return res, err
	}
	defer release()
	gone := make(chan struct{})
	defer close(gone)
	if c.Kernel == KernelUML {
		go KeepTime(cmd.Process, gone)
	}
	var silent atomic.Bool
	if c.Silence > 0 {
		go alive.watch(ctx, ready, c.Silence, func() {
			if c.Kernel != KernelUML {
				return
			}
			if err := wakeUML(dir); err != nil {
				fmt.Fprintln(log, "silent, and", err)
			}
		}, func() {
			silent.Store(true)
			cancel()
		})
	}
	runErr := wait()
	res.Total = time.Since(start)

	text, err := os.ReadFile(kernelLog(dir))
	if err != nil {
		return res, err
	}
	return res, verdict(ctx, c, verdictInput{isReady, done, silent.Load(), complaint, len(res.Codes), runErr, string(text)})
}

type verdictInput struct {
	ready     bool   // the guest was about to start its first command
	done      bool   // the guest said that it had finished
	silent    bool   // it printed nothing for Config.Silence
	complaint string // its process 1 gave up
	reported  int    // exit codes
	runErr    error  // of the process on the host
	log       string
}

// verdict turns what is known after the guest's end into an error or nil.
func verdict(ctx context.Context, c Config, in verdictInput) error {
	problem, atBoot := "", false
	faults := Faults(in.log)
	switch {
	case in.silent && !in.done:
		problem = fmt.Sprintf("said nothing for %s, command %d of %d still running", c.Silence, in.reported+1, len(c.Commands))
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) && !in.done:
		problem = fmt.Sprintf("timed out after %s, command %d of %d still running", c.Timeout, in.reported+1, len(c.Commands))
	case ctx.Err() != nil && !in.done:
		problem = "interrupted"
	case in.complaint != "":
		problem = "process 1 failed: " + in.complaint
	case !in.done && !in.ready:
		problem, atBoot = fmt.Sprintf("died before its first command (process: %v)", in.runErr), true
	case !in.done || in.reported != len(c.Commands):
		problem = fmt.Sprintf("ended without an exit code of command %d of %d (process: %v)", in.reported+1, len(c.Commands), in.runErr)
	case in.runErr != nil:
		problem = "did not power off in order: " + in.runErr.Error()
	case len(faults) > 0 && !c.AllowWarn:
		problem = "fault in the kernel log:\n" + strings.Join(faults, "\n")
	}
	if problem == "" {
		return nil
	}
	return &GuestError{Kernel: c.Kernel, Problem: problem, Log: tail(in.log, logTail), AtBoot: atBoot}
}

// connect starts cmd with a pipe for each channel. The returned function waits
// until the process has ended and the channels are drained.
func connect(cmd *exec.Cmd, stdout, stderr io.Writer, handle func(Report)) (wait func() error, err error) {
	var readers []*os.File
	for range Channels {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer w.Close()
		readers = append(readers, r)
		cmd.ExtraFiles = append(cmd.ExtraFiles, w)
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var all sync.WaitGroup
	errs := make([]error, len(readers))
	copyTo := func(i int, w io.Writer) {
		all.Go(func() { _, errs[i] = io.Copy(w, readers[i]) })
	}
	copyTo(0, stdout)
	copyTo(1, stderr)
	all.Go(func() { errs[2] = readReports(readers[2], handle) })
	return func() error {
		err := cmd.Wait()
		all.Wait()
		for _, r := range readers {
			r.Close()
		}
		return errors.Join(append(errs, err)...)
	}, nil
}
