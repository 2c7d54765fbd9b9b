package main

import (
	"github.com/spf13/cobra"
)

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
