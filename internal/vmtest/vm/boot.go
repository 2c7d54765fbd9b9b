package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Config describes a guest.
type Config struct {
	Kernel     string        // one of AllKernels
	Disks      int           // extra disks
	DiskSize   int64         // bytes of each, sparse
	SectorSize int           // logical block size of the disks; User Mode Linux knows 512 only
	DiskMBs    int           // most megabytes a second of the last disk, in qemu; 0 for no limit
	MemoryMiB  int           //
	CPUs       int           // User Mode Linux has one
	Accel      string        // qemu's -accel
	Timeout    time.Duration // for the whole life of the guest
	Silence    time.Duration // a guest that prints nothing for so long is ended; 0 for no limit
	AllowWarn  bool          // a fault in the kernel log is no failure
	Env        []string      // for the commands
	KernelArgs []string      // more for the kernel's command line
	Virtual    bool          // qemu: the guest's clock counts its instructions, one a nanosecond
	Commands   []Command
	Transcript bool // see Job
	Stdout     io.Writer
	Stderr     io.Writer

	Exited    func(command, code int) // hears of each exit code as it comes; nil for nobody
	Restarted func(*GuestError)       // hears why a guest is started again; nil for nobody
}

// Default is the guest that most tests want. Its processors share one thread of the host: with one
// each, qemu lets a processor run into the breakpoint by which Linux patches its code after it is gone.
func Default(kernel string) Config {
	c := Config{
		Kernel: kernel, Disks: 2, DiskSize: 2 << 30, SectorSize: 512,
		MemoryMiB: 2048, CPUs: 2, Accel: "tcg,thread=single", Timeout: 10 * time.Minute,
	}
	if kernel == KernelUML {
		c.CPUs = 1
	}
	return c
}

// A Result is what a guest that ended in order has reported.
type Result struct {
	Release  string        // the kernel's release
	Codes    []int         // exit code of each command
	Boot     time.Duration // until the first command could start
	Total    time.Duration // of the last start
	Restarts int           // how often it was started again, having died before its first command
}

// A GuestError says that the guest itself failed, whatever its commands did.
type GuestError struct {
	Kernel  string
	Problem string
	Log     string // end of the kernel log
	AtBoot  bool   // it died by itself, and none of its commands had begun
}

func (e *GuestError) Error() string {
	return fmt.Sprintf("guest %s: %s\n--- kernel log ---\n%s\n--- end of kernel log ---", e.Kernel, e.Problem, e.Log)
}

// restarts is how often a guest is started again that died before its first command: an
// emulated kernel sometimes does, and that says nothing about what it was to run.
const restarts = 2

// Run boots a guest, runs the commands one after the other, and returns when
// the guest is gone. A guest that hangs, panics, or ends without having
// reported every exit code is a *GuestError. One that dies before its first command
// is started again, a few times.
func Run(ctx context.Context, c Config) (Result, error) {
	if c.Kernel == KernelUML && (c.CPUs != 1 || c.SectorSize != 512) {
		return Result{}, errors.New("kernel uml has one processor and sectors of 512 bytes")
	}
	return try(ctx, c, prepare)
}

// A preparer writes a guest's files into dir and returns how to start it.
type preparer func(c Config, dir string) (argv, env []string, err error)

// try starts a guest until its first command begins or restarts are used up.
func try(ctx context.Context, c Config, prepare preparer) (Result, error) {
	for n := 0; ; n++ {
		res, err := once(ctx, c, prepare)
		res.Restarts = n
		var died *GuestError
		if n == restarts || !errors.As(err, &died) || !died.AtBoot {
			return res, err
		}
		if c.Restarted != nil {
			c.Restarted(died)
		}
	}
}

// once starts a guest with disks and files of its own and waits for its end.
func once(ctx context.Context, c Config, prepare preparer) (Result, error) {
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

// prepare is the preparer of real guests.
func prepare(c Config, dir string) (argv, env []string, err error) {
	arch := sources[c.Kernel].arch
	job := Job{Kernel: c.Kernel, Env: c.Env, Commands: c.Commands, Transcript: c.Transcript}
	if c.Kernel == KernelUML {
		exe, err := os.Executable()
		if err != nil {
			return nil, nil, err
		}
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
	if arch.foreign() {
		if job.Tools, err = fetchTools(arch); err != nil {
			return nil, nil, err
		}
	}
	exe, err := firstProgram(arch, dir)
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
	return qemuCommand(c, dir, arch, k, initrd, job.Tools, file), nil, nil
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
