// Command guest runs a program as root in a throw-away guest with a real
// kernel, and exits with the program's exit code.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dmloop/internal/vmtest/guestinit"
	"dmloop/internal/vmtest/vm"
)

// Exit codes of the runner itself, as a shell uses them.
const (
	exitUsage = 2
	exitGuest = 125 // the guest failed, not the program
)

func init() {
	// A guest ends with the thread that started it: stay on that one.
	runtime.LockOSThread()
}

func main() {
	if guestinit.Wanted() {
		guestinit.Main()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "guest:", err)
		return exitUsage
	}
	c.Stdout, c.Stderr = stdout, stderr
	res, err := vm.Run(ctx, c)
	if err != nil {
		fmt.Fprintln(stderr, "guest:", err)
		return exitGuest
	}
	fmt.Fprintf(stderr, "guest %s (%s): exit code %d, booted in %.1f s, %.1f s in all\n",
		c.Kernel, res.Release, res.Codes[0], res.Boot.Seconds(), res.Total.Seconds())
	return res.Codes[0]
}

// parse reads the command line: options, then the program and its arguments.
func parse(args []string, stderr io.Writer) (vm.Config, error) {
	var c vm.Config
	fs := flag.NewFlagSet("guest", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintf(stderr, "usage: guest [OPTIONS] -- BINARY [ARGS...]\n")
		fs.PrintDefaults()
	}
	fs.StringVar(&c.Kernel, "kernel", vm.KernelUML, "`name` of the kernel: "+strings.Join(vm.Kernels, " "))
	fs.IntVar(&c.Disks, "disks", 2, "extra disks, named in $DMLOOP_DISKS")
	size := fs.String("disk-size", "2G", "`size` of each disk, sparse")
	fs.IntVar(&c.SectorSize, "sector", 512, "logical block size of the disks in `bytes` (qemu only)")
	fs.IntVar(&c.MemoryMiB, "mem", 2048, "memory in `MiB`")
	fs.IntVar(&c.CPUs, "cpus", 1, "processors (qemu only)")
	fs.StringVar(&c.Accel, "accel", "tcg,thread=multi", "qemu's -accel")
	fs.DurationVar(&c.Timeout, "timeout", 10*time.Minute, "kill the guest after this time")
	fs.BoolVar(&c.AllowWarn, "allow-warn", false, "faults in the kernel log are no failure")
	fs.Func("env", "`K=V` for the program; may be given several times", func(v string) error {
		if !strings.Contains(v, "=") {
			return errors.New("want K=V")
		}
		c.Env = append(c.Env, v)
		return nil
	})
	if err := fs.Parse(args); err != nil {
		return c, err
	}
	var err error
	if c.DiskSize, err = parseSize(*size); err != nil {
		return c, err
	}
	if fs.NArg() == 0 {
		return c, errors.New("no program given")
	}
	cmd := vm.Command{Args: fs.Args()}
	if cmd.Args[0], err = exec.LookPath(fs.Arg(0)); err != nil {
		return c, err
	}
	if cmd.Args[0], err = filepath.Abs(cmd.Args[0]); err != nil {
		return c, err
	}
	if cmd.Dir, err = os.Getwd(); err != nil {
		return c, err
	}
	c.Commands = []vm.Command{cmd}
	return c, nil
}

// parseSize reads a number of bytes with an optional K, M or G.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "KMG")
	n, err := strconv.ParseInt(digits, 10, 64)
	shift, known := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30}[s[len(digits):]]
	if err != nil || !known || n <= 0 {
		return 0, fmt.Errorf("size %q: want a number with K, M or G", s)
	}
	return n << shift, nil
}
