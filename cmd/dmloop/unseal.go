package main

import (
	"github.com/spf13/cobra"
)

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
