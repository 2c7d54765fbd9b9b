package main

import (
	"github.com/spf13/cobra"

	"dmloop/internal/activate"
)

func newDeactivateCommand(env *cliEnv) *cobra.Command {
	o := &activateOptions{}
	cmd := &cobra.Command{
		Use:   "deactivate [NAME...]",
		Short: "Take down the devices of lines in /etc/dmlooptab",
		Long: `Take down the devices of the lines called NAME in dmlooptab(5), or with --all those of
every line: images first, then shims. A device that is not up is not an error.`,
		Args: o.args,
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), env, args, activate.Runner.Deactivate)
		},
		ValidArgsFunction: completeTab(o),
	}
	o.addFlags(env, cmd)
	return cmd
}
