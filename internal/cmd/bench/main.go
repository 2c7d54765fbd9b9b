// Command bench measures dmloop against the tools that people use today, in guests
// whose clock counts instructions (docs/benchmarks.md says what that means), and keeps
// the results in docs/bench and docs/benchmarks.md.
//
//	bench [OPTIONS]    on the host: boot each kernel, measure, write results, table and pictures
//	bench -check       on the host: measure a few figures and compare them with those of last time
//	bench -guest       in the guest: measure, print one JSON line for each figure
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"dmloop/internal/vmtest/guestinit"
	"dmloop/internal/vmtest/vm"
)

func main() {
	if guestinit.Wanted() {
		guestinit.Main()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	kernels  string
	programs string // folder with the dmloop to measure, and with what it is compared with
	docs     string // folder with benchmarks.md and bench; empty to print only
	rounds   int
	only     string // names of groups to run, with commas between; empty for all
}

// checkKernel is the one that -check measures on.
const checkKernel = vm.KernelNew

func run(ctx context.Context) error {
	var o options
	inGuest := flag.Bool("guest", false, "measure here")
	check := flag.Bool("check", false, "compare a few figures with those of last time; fail where one is larger by more than 5 %")
	update := flag.Bool("update", false, "with -check: keep the figures instead of comparing")
	flag.StringVar(&o.kernels, "kernel", strings.Join([]string{vm.Kernel61, vm.Kernel612, vm.KernelNew}, ","), "`names` of the kernels with commas between")
	flag.StringVar(&o.programs, "programs", "bin", "`folder` with the dmloop to measure")
	flag.StringVar(&o.docs, "docs", "", "`folder` for results, table and pictures")
	flag.IntVar(&o.rounds, "rounds", 5, "how often each thing is measured in each of the two passes")
	flag.StringVar(&o.only, "only", "", "`groups` to measure, with commas between, of "+strings.Join(groupNames(), " "))
	flag.Parse()
	if *inGuest {
		return measure(o)
	}
	programs, err := filepath.Abs(o.programs)
	if err != nil {
		return err
	}
	o.programs = programs
	if err := buildHello(ctx, programs); err != nil {
		return err
	}
	if *check {
		return runCheck(ctx, o, *update)
	}
	var all []result
	for _, kernel := range strings.Split(o.kernels, ",") {
		r, err := runGuest(ctx, o, kernel)
		if err != nil {
			return err
		}
		if o.docs != "" {
			if err := keep(o.docs, &r); err != nil {
				return err
			}
		}
		all = append(all, r)
	}
	if o.docs == "" {
		fmt.Print("\n" + goalTable(all))
		return nil
	}
	return writeDocs(o.docs)
}

// buildHello makes what the start of dmloop is compared with, in the way that dmloop is made.
func buildHello(ctx context.Context, folder string) error {
	if _, err := os.Stat(filepath.Join(folder, "dmloop")); err != nil {
		return err
	}
	for _, name := range []string{"hello", "linked"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(folder, name), "./internal/cmd/bench/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("building %s: %w", name, err)
		}
	}
	return nil
}

// runGuest measures in a guest with the named kernel.
func runGuest(ctx context.Context, o options, kernel string) (result, error) {
	exe, err := os.Executable()
	if err != nil {
		return result{}, err
	}
	c := vm.Default(kernel)
	c.Virtual, c.Disks, c.MemoryMiB, c.Timeout = true, 0, 4096, 4*time.Hour
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, os.Stderr
	c.Commands = []vm.Command{{Dir: "/", Args: []string{exe, "-guest",
		"-programs", o.programs, "-rounds", fmt.Sprint(o.rounds), "-only", o.only}}}
	fmt.Fprintf(os.Stderr, "kernel %s\n", kernel)
	res, err := vm.Run(ctx, c)
	if err != nil {
		return result{}, fmt.Errorf("%w\n%s", err, out.String())
	}
	if res.Codes[0] != 0 {
		return result{}, fmt.Errorf("kernel %s: measuring failed", kernel)
	}
	figures, err := readFigures(&out)
	return result{Kernel: kernel, Release: res.Release, Go: runtime.Version(), Date: time.Now().UTC().Format(time.DateOnly), Figures: figures}, err
}
