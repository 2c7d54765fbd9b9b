package main

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"dmloop/extents"
	"dmloop/internal/backing"
	"dmloop/internal/fault"
	"dmloop/internal/lifecycle"
)

func newSealCommand(env *cliEnv) *cobra.Command {
	var create extents.Bytes
	adopt := false
	word := pinWord{words: []string{lifecycle.PinAuto, lifecycle.PinSwap}}
	cmd := &cobra.Command{
		Use:   "seal IMAGE",
		Short: "Prepare an image so that the kernel itself can hold it still",
		Long: `Move the first pages of IMAGE to its end and put a swap header in their place. While
it is mapped, the kernel treats the image as an active swap file and refuses every
change to it. A few pages are moved, whatever the size of the image; unseal moves
them back. An interrupted seal or unseal is finished.

An extended attribute of the file marks it as sealed; its content never does. With
--adopt a copy that lost the attribute gets it again: you vouch that dmloop sealed it,
and not somebody who could write its content. Files on FAT, exFAT and NTFS cannot have
such attributes: there you say so each time, with --pin=swap. Every byte of an image
there is written once, which takes as long as its size needs.`,
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
			return runSeal(cmd.Context(), env, create, word.isSwap(), args[0])
		},
	}
	cmd.Flags().Var(sizeValue{&create}, "create", "make a new image of this size first")
	cmd.Flags().BoolVar(&adopt, "adopt", false, "mark a sealed image that lost its attribute, and change nothing else")
	cmd.Flags().Var(&word, "pin", "auto, or swap: the image is sealed, whatever its attributes say")
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
			return backingError(path, err, fault.Usage)
		}
	}
	show, done := progress(env, "seal")
	defer done()
	return sys.WithProgress(show).Seal(ctx, path, said)
}
