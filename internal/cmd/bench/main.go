// Command bench measures dmloop against the tools that people use today, both
// sides in one run in a guest, and keeps the result in docs/benchmarks.md.
//
//	bench [OPTIONS]    on the host: boot each kernel, measure, write the table
//	bench -guest       in the guest: measure, print one JSON line for each row
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
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
	kernels string
	program string // the dmloop to measure
	out     string // file with the table
	rounds  int
	only    string // names of groups to run, with commas between; empty for all
}

func run(ctx context.Context) error {
	var o options
	inGuest := flag.Bool("guest", false, "measure here")
	flag.StringVar(&o.kernels, "kernel", "uml,new", "`names` of the kernels with commas between")
	flag.StringVar(&o.program, "program", "bin/dmloop", "the dmloop to measure")
	flag.StringVar(&o.out, "out", "", "put the table into this `file`, between its marks")
	flag.IntVar(&o.rounds, "rounds", 7, "how often each side is measured")
	flag.StringVar(&o.only, "only", "", "`groups` to measure, with commas between, of "+strings.Join(groupNames(), " "))
	flag.Parse()
	if *inGuest {
		return measure(o)
	}
	program, err := filepath.Abs(o.program)
	if err != nil {
		return err
	}
	if _, err := os.Stat(program); err != nil {
		return err
	}
	o.program = program
	var columns []column
	for _, kernel := range strings.Split(o.kernels, ",") {
		c, err := runGuest(ctx, o, kernel)
		if err != nil {
			return err
		}
		columns = append(columns, c)
	}
	table := render(columns, describe(), time.Now())
	fmt.Print("\n" + table)
	if o.out == "" {
		return nil
	}
	return replaceBlock(o.out, table)
}

// The third disk is as quick as a SATA disk of flash; the others are files in the
// memory of the host, which no disk resembles.
const diskIOPS, diskMBs = 5000, 200

// A column is what one kernel gave.
type column struct {
	kernel, release string
	rows            []row
}

// runGuest measures in a guest with the named kernel.
func runGuest(ctx context.Context, o options, kernel string) (column, error) {
	exe, err := os.Executable()
	if err != nil {
		return column{}, err
	}
	c := vm.Default(kernel)
	c.Disks, c.DiskSize, c.MemoryMiB, c.Timeout = 3, 8<<30, 3072, time.Hour
	c.DiskIOPS, c.DiskMBs = diskIOPS, diskMBs
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, os.Stderr
	c.Commands = []vm.Command{{Dir: "/", Args: []string{exe, "-guest",
		"-program", o.program, "-rounds", fmt.Sprint(o.rounds), "-only", o.only}}}
	fmt.Fprintf(os.Stderr, "kernel %s\n", kernel)
	res, err := vm.Run(ctx, c)
	if err != nil {
		return column{}, fmt.Errorf("%w\n%s", err, out.String())
	}
	if res.Codes[0] != 0 {
		return column{}, fmt.Errorf("kernel %s: measuring failed", kernel)
	}
	rows, err := readRows(&out)
	return column{kernel: kernel, release: res.Release, rows: rows}, err
}
