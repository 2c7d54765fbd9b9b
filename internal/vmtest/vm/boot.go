package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Config describes a guest.
type Config struct {
	Kernel     string        // one of Kernels
	Disks      int           // extra disks
	DiskSize   int64         // bytes of each, sparse
	SectorSize int           // logical block size of the disks; User Mode Linux knows 512 only
	MemoryMiB  int           //
	CPUs       int           // User Mode Linux has one
	Accel      string        // qemu's -accel
	Timeout    time.Duration // for the whole life of the guest
	AllowWarn  bool          // a fault in the kernel log is no failure
	Env        []string      // for the commands
	Commands   []Command
	Transcript bool // see Job
	Stdout     io.Writer
	Stderr     io.Writer
}

// Default is the guest that most tests want.
func Default(kernel string) Config {
	c := Config{
		Kernel: kernel, Disks: 2, DiskSize: 2 << 30, SectorSize: 512,
		MemoryMiB: 2048, CPUs: 2, Accel: "tcg,thread=multi", Timeout: 10 * time.Minute,
	}
	if kernel == KernelUML {
		c.CPUs = 1
	}
	return c
}

// A Result is what a guest that ended in order has reported.
type Result struct {
	Release string        // the kernel's release
	Codes   []int         // exit code of each command
	Boot    time.Duration // until the first command could start
	Total   time.Duration
}

// A GuestError says that the guest itself failed, whatever its commands did.
type GuestError struct {
	Kernel  string
	Problem string
	Log     string // end of the kernel log
}

func (e *GuestError) Error() string {
	return fmt.Sprintf("guest %s: %s\n--- kernel log ---\n%s\n--- end of kernel log ---", e.Kernel, e.Problem, e.Log)
}

const logTail = 60

// Run boots a guest, runs the commands one after the other, and returns when
// the guest is gone. A guest that hangs, panics, or ends without having
// reported every exit code is a *GuestError.
func Run(ctx context.Context, c Config) (Result, error) {
	// Disks and job lie in a folder of their own, so that guests can run side by side.
	dir, err := os.MkdirTemp("", "dmloop-guest-")
	if err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(dir)
	for i := range c.Disks {
		if err := makeDisk(diskFile(dir, i), c.DiskSize); err != nil {
			return Result{}, err
		}
	}
	argv, env, err := prepare(c, dir)
	if err != nil {
		return Result{}, err
	}
	return boot(ctx, c, dir, argv, env)
}

// prepare writes the guest's files into dir and returns how to start it.
func prepare(c Config, dir string) (argv, env []string, err error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	job := Job{Kernel: c.Kernel, Env: c.Env, Commands: c.Commands, Transcript: c.Transcript}
	if c.Kernel == KernelUML {
		if job.Modules, err = umlModules(); err != nil {
			return nil, nil, err
		}
		job.Disks = umlDisks(c.Disks)
		// f2fs asks the crypto layer for crc32 and does not load it.
		job.Preload = []string{"dm_mod", "loop", "crc32_generic"}
		file, err := writeJob(dir, job)
		if err != nil {
			return nil, nil, err
		}
		argv, env = umlCommand(c, dir, exe, file)
		return argv, env, nil
	}
	k, err := fetch(c.Kernel)
	if err != nil {
		return nil, nil, err
	}
	job.Modules = k.modules
	job.Disks = qemuDisks(c.Disks)
	job.Preload = []string{"dm_mod", "loop"}
	file, err := writeJob(dir, job)
	if err != nil {
		return nil, nil, err
	}
	initrd := filepath.Join(dir, "initrd")
	if err := writeInitramfs(initrd, k.archive, exe); err != nil {
		return nil, nil, err
	}
	return qemuCommand(c, dir, k, initrd, kernelLog(dir), file), nil, nil
}

func diskFile(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("disk%d.raw", i)) }

func kernelLog(dir string) string { return filepath.Join(dir, "kernel.log") }

func makeDisk(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

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
	done, complaint := false, ""
	handle := func(r Report) {
		switch r.Kind {
		case "ready":
			res.Boot, res.Release = time.Since(start), r.Text
		case "exit":
			res.Codes = append(res.Codes, r.Code)
		case "error":
			complaint = r.Text
		case "done":
			done = true
		}
	}
	wait, err := connect(cmd, c.Stdout, c.Stderr, handle)
	if err != nil {
		return res, err
	}
	runErr := wait()
	res.Total = time.Since(start)

	text, err := os.ReadFile(kernelLog(dir))
	if err != nil {
		return res, err
	}
	return res, verdict(ctx, c, verdictInput{done, complaint, len(res.Codes), runErr, string(text)})
}

type verdictInput struct {
	done      bool   // the guest said that it had finished
	complaint string // its process 1 gave up
	reported  int    // exit codes
	runErr    error  // of the process on the host
	log       string
}

// verdict turns what is known after the guest's end into an error or nil.
func verdict(ctx context.Context, c Config, in verdictInput) error {
	problem := ""
	faults := Faults(in.log)
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) && !in.done:
		problem = fmt.Sprintf("timed out after %s, command %d of %d still running", c.Timeout, in.reported+1, len(c.Commands))
	case ctx.Err() != nil && !in.done:
		problem = "interrupted"
	case in.complaint != "":
		problem = "process 1 failed: " + in.complaint
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
	return &GuestError{Kernel: c.Kernel, Problem: problem, Log: tail(in.log, logTail)}
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
