//go:build !man

// Command dmloop makes block devices of regular files without the loop driver.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"dmloop/internal/advice"
	"dmloop/internal/fault"
	"dmloop/internal/hostfiles"
)

// lastPatience is how long after a signal the program ends at the latest.
const lastPatience = 10 * time.Second

// endAnyway ends the program where a call in the kernel does not: what is left half-way
// the next command finishes or undoes, as after a kill. The kernel itself may keep a
// process whose call cannot be ended until a thaw or a resume, and its locks with it.
func endAnyway() {
	env := &cliEnv{stdout: os.Stdout, stderr: os.Stderr, json: wantsJSON(os.Args[1:])}
	os.Exit(report(env, &fault.Error{Class: fault.Failed,
		Message: "interrupted; a call into the kernel did not return",
		Remedy:  advice.SeeFrozen}))
}

// The kernel hands the signals of a process to its first thread as long as none waits
// there (complete_signal in kernel/signal.c), even while that sleeps in a call which no
// signal ends. So the first thread takes signals and makes no such call.
func init() { runtime.LockOSThread() }

func main() {
	code := make(chan int)
	go func() { code <- program() }()
	os.Exit(<-code)
}

// program does what the program is for and returns its exit code.
func program() int {
	if filepath.Base(os.Args[0]) == hostfiles.GeneratorName {
		return runGenerator(os.Args[1:], os.Stderr)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, func() { time.AfterFunc(lastPatience, endAnyway) })
	defer stop()
	switch filepath.Base(os.Args[0]) {
	case mountName:
		return runMountHelper(ctx, os.Args[1:], os.Stdout, os.Stderr)
	case umountName:
		return runUmountHelper(ctx, os.Args[1:], os.Stdout, os.Stderr)
	}
	return run(ctx, os.Args[1:], os.Stdout, os.Stderr)
}
