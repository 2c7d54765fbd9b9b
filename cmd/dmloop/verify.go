package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"dmloop/guard"
	"dmloop/internal/fault"
)

type verifiedJSON struct {
	Name     string          `json:"name"`
	State    string          `json:"state"`
	Reason   string          `json:"reason"`
	Findings []guard.Finding `json:"findings"`
}

func newVerifyCommand(env *cliEnv) *cobra.Command {
	all := false
	cmd := &cobra.Command{
		Use:   "verify [NAME|IMAGE...]",
		Short: "Read everything about mappings again and compare it with what was mapped",
		Long: `Compare the image's identity, layout and pins, the host device's table and the
mapping's own table with the record, now. Changes nothing. Exits with 4 when a
mapping is stale or torn down.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all && len(args) > 0 {
				return usageError("give either names or --all")
			}
			return runVerify(cmd.Context(), env, args)
		},
		ValidArgsFunction: completeMappings(env),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "verify every mapping, as without a name")
	jsonFlag(env, cmd)
	return cmd
}

func runVerify(ctx context.Context, env *cliEnv, targets []string) error {
	sys := env.system()
	defer sys.Close()
	all, err := named(ctx, targets, sys.Verify)
	if err != nil && len(targets) == 0 {
		return err // nothing is verified, which is not the same as all is well
	}
	out := make([]verifiedJSON, 0, len(all))
	broken := false
	for _, v := range all {
		row := verifiedJSON{Name: v.Name, State: string(v.State), Reason: v.Reason, Findings: v.Findings}
		if row.Findings == nil {
			row.Findings = []guard.Finding{}
		}
		out = append(out, row)
		broken = broken || v.State.Broken()
	}
	if env.json {
		err = errors.Join(err, printJSON(env, struct {
			Mappings []verifiedJSON `json:"mappings"`
		}{out}))
	} else {
		for _, row := range out {
			fmt.Fprintf(env.stdout, "%s: %s\n", printable(row.Name), row.State)
			if row.Reason != "" {
				fmt.Fprintf(env.stdout, "  %s\n", printable(row.Reason))
			}
		}
	}
	if err == nil && broken {
		return reported{fault.StaleMapping}
	}
	return err
}
