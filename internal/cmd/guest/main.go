// Command guest runs programs and tests as root in throw-away guests with a
// real kernel (docs/testing.md).
//
//	guest [OPTIONS] -- BINARY [ARGS...]   run one program, exit with its code
//	guest test [OPTIONS] [PACKAGES]       run this module's guest tests
//	guest fetch [KERNEL...]               put kernels into the cache
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"dmloop/internal/vmtest/guestinit"
	"dmloop/internal/vmtest/vm"
)

// Exit codes of the runner itself, as a shell uses them.
const (
	exitFailed = 1
	exitUsage  = 2
	exitGuest  = 125 // the guest failed, not the program
)

func main() {
	if guestinit.Wanted() {
		guestinit.Main()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := dispatch(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// dispatch picks the subcommand; everything before "--" belongs to the runner.
func dispatch(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	command := runProgram
	if len(args) > 0 {
		switch args[0] {
		case "test":
			command, args = runTests, args[1:]
		case "fetch":
			command, args = fetchKernels, args[1:]
		}
	}
	code, err := command(ctx, args, stdout, stderr)
	var guest *vm.GuestError
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err == nil:
		return code
	}
	fmt.Fprintln(stderr, "guest:", err)
	if errors.As(err, &guest) {
		return exitGuest
	}
	return code
}

// fetchKernels downloads the named kernels, or those that all tests run with.
func fetchKernels(_ context.Context, names []string, stdout, _ io.Writer) (int, error) {
	if len(names) == 0 {
		names = vm.Kernels
	}
	for _, name := range names {
		if err := vm.Fetch(name); err != nil {
			return exitFailed, err
		}
		fmt.Fprintf(stdout, "kernel %s is there\n", name)
	}
	return 0, nil
}
