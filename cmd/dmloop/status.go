package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"dmloop/guard"
	"dmloop/internal/fault"
	"dmloop/internal/gate"
	"dmloop/internal/lifecycle"
)

func newStatusCommand(env *cliEnv) *cobra.Command {
	opts := &listOptions{}
	cmd := &cobra.Command{
		Use:   "status NAME|IMAGE...",
		Short: "Show all that is known of a mapping or a shim",
		Long: `Show one mapping or shim in full, a line for each property, or as list does with
--output, --raw or --json. Exits with 4 when the mapping is stale or torn down.`,
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
		return printColumnHelp(env, listColumns)
	}
	sys := env.system()
	defer sys.Close()
	found, shims, err := statusOf(ctx, sys, args)
	switch {
	case env.json:
		err = errors.Join(err, printStatusJSON(env, found, shims, refusedOf(sys, found)))
	case opts.raw || opts.output != "" || opts.all:
		if len(found) > 0 || len(shims) == 0 {
			err = errors.Join(err, printMappings(env, opts, found))
		}
		if len(shims) > 0 {
			err = errors.Join(err, printShims(env, opts, shimRows(shims)))
		}
	default:
		refused := refusedOf(sys, found)
		for _, s := range found {
			printProperties(env.stdout, listColumns, toMappingJSON(s), opts.bs)
			for _, d := range refused[s.Name] {
				fmt.Fprintf(env.stdout, "%-8s %s\n", "REFUSED", refusedLine(d, nil))
			}
		}
		for _, s := range shimRows(shims) {
			printProperties(env.stdout, shimColumns, s, opts.bs)
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

// statusOf looks each target up among the mappings, and then among the shims.
func statusOf(ctx context.Context, sys *lifecycle.System, targets []string) (found []lifecycle.Status, shims []lifecycle.ShimStatus, err error) {
	found, err = named(ctx, targets, func(ctx context.Context, target ...string) ([]lifecycle.Status, error) {
		found, err := sys.List(ctx, target...)
		if fault.ClassOf(err) != fault.NotFound {
			return found, err
		}
		more, serr := sys.Shims(ctx, target...)
		if serr != nil {
			return nil, err
		}
		shims = append(shims, more...)
		return nil, nil
	})
	return found, shims, err
}

// shownRefusals is how many of the last refusals status prints for each mapping.
const shownRefusals = 5

// refusedOf collects what the gate in the kernel refused lately, by the mappings' names.
func refusedOf(sys *lifecycle.System, found []lifecycle.Status) map[string][]gate.Denial {
	refused := map[string][]gate.Denial{}
	gated := func(s lifecycle.Status) bool { return s.Gate == guard.GateBPF }
	if !slices.ContainsFunc(found, gated) {
		return refused
	}
	st, err := sys.Gate()
	if err != nil {
		return refused // what the mappings are stays worth saying
	}
	names := gatedNames(st)
	for _, d := range st.Recent {
		if name := names[d.Mapping]; name != "" {
			refused[name] = append(refused[name], d)
		}
	}
	for name, all := range refused {
		refused[name] = all[max(0, len(all)-shownRefusals):]
	}
	return refused
}

// printStatusJSON is what list prints, with the refusals.
func printStatusJSON(env *cliEnv, found []lifecycle.Status, shims []lifecycle.ShimStatus, refused map[string][]gate.Denial) error {
	rows := make([]mappingJSON, 0, len(found))
	for _, s := range found {
		row := toMappingJSON(s)
		for _, d := range refused[s.Name] {
			one := toRefusedJSON(d, nil)
			one.Mapping = s.Name
			row.Refused = append(row.Refused, one)
		}
		rows = append(rows, row)
	}
	return printJSON(env, mappingsJSON{Mappings: rows, Shims: shimRows(shims)})
}
