package main

import (
	"github.com/spf13/cobra"

	"dmloop/internal/lifecycle"
)

func newUnsealCommand(env *cliEnv) *cobra.Command {
	word := pinWord{words: []string{lifecycle.PinAuto, lifecycle.PinSwap}}
	cmd := &cobra.Command{
		Use:   "unseal IMAGE...",
		Short: "Put the first pages of sealed images back",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			sys := env.system()
			defer sys.Close()
			return each(args, func(path string) error { return sys.Unseal(cmd.Context(), path, word.isSwap()) })
		},
	}
	cmd.Flags().Var(&word, "pin", "auto, or swap: the images are sealed, whatever their attributes say")
	jsonFlag(env, cmd)
	return cmd
}
