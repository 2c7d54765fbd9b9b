//go:build !man

// Command dmloop makes block devices of regular files without the loop driver.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"dmloop/internal/hostfiles"
)

func main() {
	if filepath.Base(os.Args[0]) == hostfiles.GeneratorName {
		os.Exit(runGenerator(os.Args[1:], os.Stderr))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
