package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"dmloop/internal/lifecycle"
	"dmloop/internal/mapper"
)

func newMapCommand(env *cliEnv) *cobra.Command {
	o := &lifecycle.MapOptions{}
	dryRun := false
	cmd := &cobra.Command{
		Use:   "map IMAGE [NAME]",
		Short: "Make a block device of an image and print its path",
		Long: `Verify that the blocks of IMAGE can be mapped, pin it, map it and print
/dev/mapper/NAME. Without NAME, the base name of the image without its extension is
used.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				o.Name = args[1]
				if o.Name == "" {
					return usageError("the name of a mapping cannot be empty")
				}
			}
			switch {
			case dryRun && o.Seal:
				return usageError("--dry-run changes nothing, so it cannot tell what would be loaded after --seal")
			case dryRun:
				return runPlan(cmd.Context(), env, *o, args[0])
			}
			return runMap(cmd.Context(), env, *o, args[0])
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.ReadOnly, "read-only", "r", false, "make the device read-only")
	surveyFlags(cmd, &o.Options)
	f.BoolVarP(&o.PartScan, "partscan", "P", false, "make devices of the partitions inside, NAMEp1 and so on")
	f.StringVar(&o.Pin, "pin", lifecycle.PinAuto, "how to pin the image: auto, immutable, swap or none")
	f.StringVar((*string)(&o.Gate), "gate", lifecycle.GateAuto, "what denies opens of the image by others: auto, bpf, fanotify or none")
	f.StringVar((*string)(&o.OnChange), "on-change", "error", "what to do when the blocks are found elsewhere: error, suspend or report")
	f.StringVar(&o.UdevRules, "udev-rules", mapper.UdevLinks, "links: udev makes links and leaves LVM, md and bcache inside alone; or all")
	f.BoolVar(&o.NoGuard, "no-guard", false, "start no guard; needs --unsafe too unless the grade is kernel")
	f.BoolVar(&o.Unsafe, "unsafe", false, "accept a pin that is weaker than guarded")
	f.StringVar(&o.UUID, "uuid", "", "use this UUID (32 hex digits) instead of a random one")
	f.BoolVar(&o.Seal, "seal", false, "seal the image first, unless it is sealed")
	f.BoolVar(&dryRun, "dry-run", false, "verify, print what would be loaded, and change nothing")
	jsonFlag(env, cmd)
	return cmd
}

func runMap(ctx context.Context, env *cliEnv, o lifecycle.MapOptions, path string) error {
	sys := env.system()
	defer sys.Close()
	st, err := sys.Map(ctx, path, o)
	if err != nil {
		return err
	}
	if env.json {
		return printJSON(env, mappingsJSON{Mappings: []mappingJSON{toMappingJSON(st)}})
	}
	fmt.Fprintln(env.stdout, st.Device)
	return nil
}

func runPlan(ctx context.Context, env *cliEnv, o lifecycle.MapOptions, path string) error {
	sys := env.system()
	defer sys.Close()
	plan, err := sys.PlanMap(ctx, path, o)
	if err == nil {
		err = sys.CanMap(path, o)
	}
	if err != nil {
		return err
	}
	if env.json {
		return printJSON(env, mappingsJSON{Mappings: []mappingJSON{toMappingJSON(plan.Status)}})
	}
	fmt.Fprintf(env.stdout, "would make /dev/mapper/%s of %s, grade %s:\n%s", plan.Name, printable(path), plan.Grade, plan.Survey.Table)
	return nil
}
