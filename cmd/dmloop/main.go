//go:build !man

// Command dmloop makes block devices of regular files without the loop driver.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"dmloop/internal/hostfiles"
	"dmloop/internal/lifecycle"
)

// lastPatience is how long after a signal the program ends at the latest.
const lastPatience = 10 * time.Second

// endAnyway ends the program where a call in the kernel does not: what is left half-way
// the next command finishes or undoes, as after a kill. The kernel itself may keep a
// process whose call cannot be ended until a thaw or a resume, and its locks with it.
func endAnyway() {
	env := &cliEnv{stdout: os.Stdout, stderr: os.Stderr, json: wantsJSON(os.Args[1:])}
	os.Exit(report(env, &lifecycle.Error{Class: lifecycle.Failure,
		Message: "interrupted; a call in the kernel did not come to an end",
		Hint:    "see whether a file system is frozen (fsfreeze), or a device suspended or lost; the next command finishes or undoes what this one left"}))
}

func main() {
	if filepath.Base(os.Args[0]) == hostfiles.GeneratorName {
		os.Exit(runGenerator(os.Args[1:], os.Stderr))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, func() { time.AfterFunc(lastPatience, endAnyway) })
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
