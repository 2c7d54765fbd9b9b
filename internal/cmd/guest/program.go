package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"dmloop/internal/vmtest/vm"
)

// runProgram runs one program in a guest.
func runProgram(ctx context.Context, args []string, stdout, stderr io.Writer) (int, error) {
	c, err := parse(args, stderr)
	if err != nil {
		return exitUsage, err
	}
	c.Stdout, c.Stderr = stdout, stderr
	c.Restarted = func(died *vm.GuestError) { fmt.Fprintln(stderr, "guest: is started again:", died) }
	res, err := vm.Run(ctx, c)
	if err != nil {
		return exitGuest, err
	}
	if res.Codes[0] != 0 { // else the last line is the program's own
		fmt.Fprintf(stderr, "guest %s (%s): exit code %d, booted in %.1f s, %.1f s in all\n",
			c.Kernel, res.Release, res.Codes[0], res.Boot.Seconds(), res.Total.Seconds())
	}
	return res.Codes[0], nil
}

// parse reads the command line: options, then the program and its arguments.
func parse(args []string, stderr io.Writer) (vm.Config, error) {
	c := vm.Default(vm.KernelUML)
	fs := flag.NewFlagSet("guest", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintln(stderr, "usage: guest [OPTIONS] -- BINARY [ARGS...]\n       guest test [OPTIONS] [PACKAGES]\n       guest fetch [KERNEL...]")
		fs.PrintDefaults()
	}
	fs.StringVar(&c.Kernel, "kernel", c.Kernel, "`name` of the kernel: "+strings.Join(vm.AllKernels(), " "))
	fs.IntVar(&c.Disks, "disks", c.Disks, "extra disks, named in $DMLOOP_DISKS")
	fs.Func("disk-size", "size of each disk, sparse (default 2G)", func(v string) (err error) {
		c.DiskSize, err = parseSize(v)
		return err
	})
	fs.IntVar(&c.SectorSize, "sector", c.SectorSize, "logical block size of the disks in `bytes` (qemu only)")
	fs.IntVar(&c.MemoryMiB, "mem", c.MemoryMiB, "memory in `MiB`")
	fs.IntVar(&c.CPUs, "cpus", c.CPUs, "processors (qemu only)")
	fs.StringVar(&c.Accel, "accel", c.Accel, "qemu's -accel")
	fs.DurationVar(&c.Timeout, "timeout", c.Timeout, "kill the guest after this time")
	fs.DurationVar(&c.Silence, "silence", c.Silence, "kill the guest when it prints nothing for this time; 0 for never")
	fs.BoolVar(&c.AllowWarn, "allow-warn", c.AllowWarn, "faults in the kernel log are no failure")
	envFlag(fs, &c.Env)
	appendFlag(fs, &c.KernelArgs)
	fs.BoolVar(&c.Virtual, "virtual", c.Virtual, "qemu's guest counts its instructions, one a nanosecond, and that is its clock")
	if err := fs.Parse(args); err != nil {
		return c, err
	}
	if fs.NArg() == 0 {
		return c, errors.New("no program given")
	}
	cmd, err := commandOf(fs.Args())
	c.Commands = []vm.Command{cmd}
	return c, err
}

// appendFlag adds the option that fills args.
func appendFlag(fs *flag.FlagSet, args *[]string) {
	fs.Func("append", "`word` for the kernel's command line (qemu only); may be given several times", func(v string) error {
		*args = append(*args, v)
		return nil
	})
}

// envFlag adds the option that fills env.
func envFlag(fs *flag.FlagSet, env *[]string) {
	fs.Func("env", "`K=V` for what runs in the guest; may be given several times", func(v string) error {
		if !strings.Contains(v, "=") {
			return errors.New("want K=V")
		}
		*env = append(*env, v)
		return nil
	})
}

// commandOf finds the program on the host, as a shell would.
func commandOf(args []string) (vm.Command, error) {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return vm.Command{}, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return vm.Command{}, err
	}
	dir, err := os.Getwd()
	return vm.Command{Args: append([]string{path}, args[1:]...), Dir: dir}, err
}

// parseSize reads a number of bytes with an optional K, M or G.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "KMG")
	n, err := strconv.ParseInt(digits, 10, 64)
	shift, known := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30}[s[len(digits):]]
	if err != nil || !known || n <= 0 || n<<shift>>shift != n {
		return 0, fmt.Errorf("size %q: want a number with K, M or G", s)
	}
	return n << shift, nil
}
