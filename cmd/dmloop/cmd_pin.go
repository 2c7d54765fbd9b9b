package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"dmloop/extents"
	"dmloop/internal/backing"
	"dmloop/internal/lifecycle"
)

// each runs do for every target and joins what fails, so that one does not keep
// the others from their turn.
func each(targets []string, do func(string) error) error {
	var failed []error
	for _, t := range targets {
		if err := do(t); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func newPinCommand(env *cliEnv) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pin IMAGE...",
		Short: "Pin images by hand, as map does, and leave them pinned",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runPin(cmd.Context(), env, args)
		},
	}
	jsonFlag(env, cmd)
	return cmd
}

func runPin(ctx context.Context, env *cliEnv, images []string) error {
	sys := env.system()
	defer sys.Close()
	type pinned struct {
		Image string   `json:"image"`
		Pin   []string `json:"pin"`
	}
	out := []pinned{}
	err := each(images, func(path string) error {
		kinds, err := sys.Pin(ctx, path)
		if err != nil {
			return err
		}
		out = append(out, pinned{path, kinds})
		if !env.json {
			fmt.Fprintf(env.stdout, "%s: %s\n", printable(path), strings.Join(kinds, " "))
		}
		return nil
	})
	if !env.json {
		return err
	}
	return errors.Join(err, printJSON(env, struct {
		Images []pinned `json:"images"`
	}{out}))
}

func newUnpinCommand(env *cliEnv) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "unpin IMAGE...",
		Short: "Clear the pins that dmloop set; pins set by others stay",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			sys := env.system()
			defer sys.Close()
			return each(args, func(path string) error { return sys.Unpin(cmd.Context(), path) })
		},
	}
	jsonFlag(env, cmd)
	return cmd
}

func newSealCommand(env *cliEnv) *cobra.Command {
	var create extents.Bytes
	cmd := &cobra.Command{
		Use:   "seal IMAGE",
		Short: "Prepare an image so that the kernel itself can hold it still",
		Long: `Move the first pages of IMAGE to its end and put a swap header in their place. While
it is mapped, the kernel treats the image as an active swap file and refuses every
change to it. In place, a few pages whatever the size, and undone by unseal. A
seal or unseal that was cut off is finished.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("create") && create == 0 {
				return errNoBytes
			}
			return runSeal(cmd.Context(), env, create, args[0])
		},
	}
	cmd.Flags().Var(sizeValue{&create}, "create", "make a new image of this size first")
	jsonFlag(env, cmd)
	return cmd
}

func runSeal(ctx context.Context, env *cliEnv, create extents.Bytes, path string) error {
	sys := env.system()
	defer sys.Close()
	if create > 0 {
		show, done := progress(env, "create")
		err := backing.Create(ctx, path, create, backing.Options{Progress: show})
		done()
		if err != nil {
			return backingError(path, err, lifecycle.Usage)
		}
	}
	return sys.Seal(ctx, path)
}

func newUnsealCommand(env *cliEnv) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "unseal IMAGE...",
		Short: "Put the first pages of sealed images back",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			sys := env.system()
			defer sys.Close()
			return each(args, func(path string) error { return sys.Unseal(cmd.Context(), path) })
		},
	}
	jsonFlag(env, cmd)
	return cmd
}
