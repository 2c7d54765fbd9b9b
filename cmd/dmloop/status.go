package main

import (
	"context"
	"errors"
	"fmt"

	"dmloop/internal/fault"

	"github.com/spf13/cobra"
)

func newStatusCommand(env *cliEnv) *cobra.Command {
	opts := &listOptions{}
	cmd := &cobra.Command{
		Use:   "status NAME|IMAGE...",
		Short: "Show all that is known of a mapping",
		Long: `Show one mapping in full, a line for each property; with --output, --raw or --json
as list does. Exits with 4 when the mapping is stale or torn down.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runStatus(cmd.Context(), env, opts, args)
		},
		ValidArgsFunction: completeMappings(env),
	}
	opts.addFlags(env, cmd)
	return cmd
}

func runStatus(ctx context.Context, env *cliEnv, opts *listOptions, args []string) error {
	if opts.output == outputHelp {
		return printColumnHelp(env)
	}
	sys := env.system()
	defer sys.Close()
	found, err := named(ctx, args, sys.List)
	if env.json || opts.raw || opts.output != "" || opts.all {
		err = errors.Join(err, printMappings(env, opts, found))
	} else {
		for _, s := range found {
			row := toMappingJSON(s)
			for _, c := range listColumns {
				if v := c.value(row, opts.bs); v != "" {
					fmt.Fprintf(env.stdout, "%-8s %s\n", c.name, printable(v))
				}
			}
		}
	}
	if err != nil {
		return err
	}
	for _, s := range found {
		if s.Broken() {
			return reported{fault.StaleMapping}
		}
	}
	return nil
}
