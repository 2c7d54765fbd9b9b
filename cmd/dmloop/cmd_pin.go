package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
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
	word := pinWord{words: []string{lifecycle.PinAuto, lifecycle.PinSwap}}
	cmd := &cobra.Command{
		Use:   "pin IMAGE...",
		Short: "Pin images by hand, as map does, and leave them pinned",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runPin(cmd.Context(), env, args, word.isSwap())
		},
	}
	cmd.Flags().Var(&word, "pin", "auto, or swap: the images are sealed, whatever their attributes say")
	jsonFlag(env, cmd)
	return cmd
}

// pinWord is a flag --pin of a command that takes some of map's words.
type pinWord struct {
	words []string // the first is the default
	word  string
}

func (p *pinWord) String() string {
	if p.word == "" && len(p.words) > 0 {
		return p.words[0]
	}
	return p.word
}
func (p *pinWord) Type() string { return "string" }
func (p *pinWord) Set(text string) error {
	if !slices.Contains(p.words, text) {
		return fmt.Errorf("it takes %s, not %q", strings.Join(p.words, ", "), text)
	}
	p.word = text
	return nil
}
func (p *pinWord) isSwap() bool { return p.word == lifecycle.PinSwap }

func runPin(ctx context.Context, env *cliEnv, images []string, asSealed bool) error {
	sys := env.system()
	defer sys.Close()
	type pinned struct {
		Image string   `json:"image"`
		Pin   []string `json:"pin"`
	}
	out := []pinned{}
	err := each(images, func(path string) error {
		kinds, err := sys.Pin(ctx, path, asSealed)
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
	adopt := false
	cmd := &cobra.Command{
		Use:   "seal IMAGE",
		Short: "Prepare an image so that the kernel itself can hold it still",
		Long: `Move the first pages of IMAGE to its end and put a swap header in their place. While
it is mapped, the kernel treats the image as an active swap file and refuses every
change to it. In place, a few pages whatever the size, and undone by unseal. A
seal or unseal that was cut off is finished.

An extended attribute of the file says that it is sealed; what an image holds is never
asked. With --adopt a copy that lost the attribute gets it again: you say that dmloop
sealed it, and not somebody who could write its content.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("create") && create == 0 {
				return errNoBytes
			}
			if adopt {
				sys := env.system()
				defer sys.Close()
				return sys.AdoptSeal(cmd.Context(), args[0])
			}
			return runSeal(cmd.Context(), env, create, false, args[0])
		},
	}
	cmd.Flags().Var(sizeValue{&create}, "create", "make a new image of this size first")
	cmd.Flags().BoolVar(&adopt, "adopt", false, "mark a sealed image that lost its attribute, and change nothing else")
	cmd.MarkFlagsMutuallyExclusive("create", "adopt")
	jsonFlag(env, cmd)
	return cmd
}

func runSeal(ctx context.Context, env *cliEnv, create extents.Bytes, said bool, path string) error {
	sys := env.system()
	defer sys.Close()
	if create > 0 {
		if err := sys.Awake(ctx, path, filepath.Dir(path)); err != nil {
			return err
		}
		show, done := progress(env, "create")
		err := backing.Create(ctx, path, create, backing.Options{Progress: show})
		done()
		if err != nil {
			return backingError(path, err, lifecycle.Usage)
		}
	}
	return sys.Seal(ctx, path, said)
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
