package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/backing"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/survey"
)

func newProvisionCommand(env *cliEnv) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "provision IMAGE",
		Short: "Make an existing image mappable without changing its content",
		Long: `Give every byte of IMAGE a written block of its own: holes and preallocated space
become zeros on the disk, shared and compressed blocks are written again. The content
of the file stays the same, even when the work is interrupted.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runProvision(cmd.Context(), env, args[0])
		},
	}
	jsonFlag(env, cmd)
	return cmd
}

func runProvision(ctx context.Context, env *cliEnv, path string) error {
	sys := env.system()
	defer sys.Close()
	found, err := image.Find(path)
	if err != nil {
		return backingError(path, err, fault.NotMappable)
	}
	defer found.Close()
	if err := sys.NotMapped(found); err != nil {
		return err
	}
	if err := sys.Awake(ctx, path, path); err != nil {
		return err
	}
	show, done := progress(env, "provision")
	report, err := backing.Provision(ctx, found, backing.Options{Progress: show, Allow: sys.NotLive, Wait: sys.Waiting(path)})
	done()
	var refused *extents.Refusal
	if errors.As(err, &refused) {
		survey.ByFormatOf(found, refused.Problems)
	}
	if err != nil {
		return backingError(path, err, fault.NotMappable)
	}
	if env.json {
		return printJSON(env, struct {
			Image string `json:"image"`
			backing.Report
		}{path, report})
	}
	if report.Rounds == 0 {
		fmt.Fprintf(env.stdout, "%s: nothing to do\n", printable(path))
		return nil
	}
	if report.Written > 0 {
		fmt.Fprintf(env.stdout, "%s: wrote all of its %s once\n", printable(path), humanSize(report.Written))
		return nil
	}
	fmt.Fprintf(env.stdout, "%s: zeroed %s of holes and %s of unwritten space, unshared %s, decompressed %s\n", printable(path),
		humanSize(report.Holes), humanSize(report.Unwritten), humanSize(report.Shared), humanSize(report.Encoded))
	return nil
}

// backingError gives the errors of package backing their class. A file that breaks
// rules is of class broken: for create it is the request that is wrong.
func backingError(path string, err error, broken fault.Class) error {
	out := &fault.Error{Class: fault.ClassOf(err), Subject: path, Err: err}
	var space *backing.NoSpaceError
	var problems *extents.Refusal
	var perr *fs.PathError
	var refused *fault.Error
	switch {
	case errors.As(err, &refused):
		return refused
	case errors.Is(err, context.Canceled):
		out.Class, out.Message, out.Err = fault.Failed, "interrupted", nil
	case errors.As(err, &problems):
		out = fault.Refuse(path, problems.Problems)
		if broken == fault.Usage && onlyRule(problems.Problems, extents.SizeUnaligned) {
			out.Class = broken
		}
	case errors.As(err, &space):
		out.Message = fmt.Sprintf("not enough space: %s needed, %s available", humanSize(space.Needed), humanSize(space.Available))
		out.Err = nil
	case errors.Is(err, backing.ErrImmutable):
		out.Message, out.Err = backing.ErrImmutable.Error(), nil
		out.Class, out.Remedy = fault.NotPermitted, advice.ClearEitherPin
	case errors.Is(err, unix.EISDIR):
		out.Class, out.Message, out.Err = fault.Usage, "is a directory: give the name of a file", nil
	case errors.Is(err, fs.ErrExist):
		out.Message, out.Err = "exists already, and an existing file is never replaced", nil
	case errors.Is(err, fs.ErrNotExist):
		out.Message, out.Err = "no such file or directory", nil
	case errors.As(err, &perr):
		out.Message, out.Err = perr.Op, perr.Err
	}
	return out
}

func onlyRule(problems []extents.Problem, rule extents.Rule) bool {
	for _, p := range problems {
		if p.Rule != rule {
			return false
		}
	}
	return true
}
