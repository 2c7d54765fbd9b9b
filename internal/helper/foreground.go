package helper

import (
	"context"
	"os"
	"os/exec"
)

// Foreground is a command of the user's, found as the user's shell would and not started,
// with the terminal to itself.
func Foreground(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}
