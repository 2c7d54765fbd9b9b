package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"dmloop/dmtable"
	"dmloop/internal/lifecycle"
)

func newMapCommand(env *cliEnv) *cobra.Command {
	o := &lifecycle.MapOptions{}
	dryRun, seal := false, false
	cmd := &cobra.Command{
		Use:   "map IMAGE [NAME]",
		Short: "Make a block device of an image and print its path",
		Long: `Verify that IMAGE is a file whose blocks can be lent to a device, pin it, map it
and print /dev/mapper/NAME. NAME is the image's base name without its extension
unless given.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				o.Name = args[1]
				if o.Name == "" {
					return usageError("the name of a mapping cannot be empty")
				}
			}
			switch {
			case dryRun && seal:
				return usageError("--dry-run changes nothing, so it cannot tell what would be loaded after --seal")
			case dryRun:
				return runPlan(cmd.Context(), env, *o, args[0])
			case seal:
				return runSealedMap(cmd.Context(), env, *o, args[0])
			}
			return runMap(cmd.Context(), env, *o, args[0])
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.ReadOnly, "read-only", "r", false, "make the device read-only")
	surveyFlags(cmd, &o.SurveyOptions)
	f.BoolVarP(&o.PartScan, "partscan", "P", false, "make devices of the partitions inside, NAMEp1 and so on")
	f.StringVar(&o.Pin, "pin", lifecycle.PinAuto, "auto, immutable, swap or none")
	f.StringVar(&o.OnChange, "on-change", "error", "when the blocks are found elsewhere: error, suspend or report")
	f.StringVar(&o.UdevRules, "udev-rules", lifecycle.UdevLinks, "links: udev makes links and leaves LVM, md and bcache inside alone; or all")
	f.BoolVar(&o.NoGuard, "no-guard", false, "start no guard; needs --unsafe too unless the grade is kernel")
	f.BoolVar(&o.Unsafe, "unsafe", false, "accept a pin that is weaker than guarded")
	f.StringVar(&o.UUID, "uuid", "", "use this UUID (32 hex digits) instead of a random one")
	f.BoolVar(&seal, "seal", false, "seal the image first, unless it is sealed")
	f.BoolVar(&dryRun, "dry-run", false, "verify, print what would be loaded, and change nothing")
	jsonFlag(env, cmd)
	return cmd
}

func runMap(ctx context.Context, env *cliEnv, o lifecycle.MapOptions, path string) error {
	sys := env.system()
	defer sys.Close()
	return mapWith(ctx, env, sys, o, path)
}

func mapWith(ctx context.Context, env *cliEnv, sys *lifecycle.System, o lifecycle.MapOptions, path string) error {
	st, err := sys.Map(ctx, path, o)
	if err != nil {
		return err
	}
	if env.json {
		return printJSON(env, mappingsJSON{[]mappingJSON{toMappingJSON(st)}})
	}
	fmt.Fprintln(env.stdout, st.Device)
	return nil
}

// runSealedMap seals the image only when nothing else than the image can be in the
// way of mapping it.
func runSealedMap(ctx context.Context, env *cliEnv, o lifecycle.MapOptions, path string) error {
	sys := env.system()
	defer sys.Close()
	looked, err := sys.Look(path) // what is sealed is what was judged, and is mapped
	if err != nil {
		return err
	}
	defer looked()
	if err := sys.CanMap(path, o); err != nil {
		return err
	}
	if err := sys.Seal(ctx, path, o.Pin == lifecycle.PinSwap); err != nil {
		return err
	}
	return mapWith(ctx, env, sys, o, path)
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
		return printJSON(env, mappingsJSON{[]mappingJSON{toMappingJSON(plan.Status)}})
	}
	fmt.Fprintf(env.stdout, "would make /dev/mapper/%s of %s, grade %s:\n%s", plan.Name, printable(path), plan.Grade, plan.Survey.Table)
	return nil
}

func newUnmapCommand(env *cliEnv) *cobra.Command {
	o := &lifecycle.UnmapOptions{}
	all, forget := false, false
	cmd := &cobra.Command{
		Use:   "unmap NAME|IMAGE...",
		Short: "Remove mappings and release their images",
		Long: `Remove mappings, named by their name or their image, and undo the pins that dmloop
set. Returns when the device is really gone, unless --deferred is given.

--forget gives up the record of a mapping whose device is gone and whose image cannot
be released, because its disk will not come back, say. It prints what stays behind.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usageError("give names or images, or --all")
			}
			if forget && (all || o.Deferred || o.Force) {
				return usageError("--forget goes with names only")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if forget {
				return runForget(cmd.Context(), env, args)
			}
			return runUnmap(cmd.Context(), env, *o, all, args)
		},
		ValidArgsFunction: completeMappings(env),
	}
	f := cmd.Flags()
	f.BoolVarP(&all, "all", "a", false, "remove every mapping of dmloop")
	f.BoolVar(&o.Deferred, "deferred", false, "when in use, remove it when its last user closes it")
	f.BoolVarP(&o.Force, "force", "f", false, "when in use, let its users' I/O fail from now on")
	f.BoolVar(&forget, "forget", false, "give up the record of what cannot be released, and print what stays")
	jsonFlag(env, cmd)
	return cmd
}

func runUnmap(ctx context.Context, env *cliEnv, o lifecycle.UnmapOptions, all bool, targets []string) error {
	sys := env.system()
	defer sys.Close()
	if all {
		found, err := sys.List(ctx)
		if err != nil {
			return err
		}
		for _, st := range found {
			targets = append(targets, st.Name)
		}
		o.NameOnly = true
	}
	return each(targets, func(t string) error {
		err := sys.Unmap(ctx, t, o)
		if all && lifecycle.ClassOf(err) == lifecycle.NotFound {
			return nil // another command was quicker
		}
		return err
	})
}

func runForget(ctx context.Context, env *cliEnv, targets []string) error {
	sys := env.system()
	defer sys.Close()
	type forgottenJSON struct {
		Name     string   `json:"name"`
		Image    string   `json:"image"`
		Pins     []string `json:"pins"`
		Released bool     `json:"released"`
	}
	out := []forgottenJSON{}
	err := each(targets, func(t string) error {
		left, err := sys.Forget(ctx, t)
		if err != nil {
			return err
		}
		out = append(out, forgottenJSON{left.Name, left.Image, append([]string{}, left.Pins...), left.Released})
		if !env.json {
			fmt.Fprintf(env.stdout, "%s: %s\n", printable(left.Name), leftBehind(left))
		}
		return nil
	})
	if !env.json {
		return err
	}
	return errors.Join(err, printJSON(env, struct {
		Forgotten []forgottenJSON `json:"forgotten"`
	}{out}))
}

// leftBehind says what stays of a mapping that was given up.
func leftBehind(f lifecycle.Forgotten) string {
	switch {
	case f.Released:
		return "released after all, nothing is left"
	case f.Gone:
		return "given up; the image was deleted, and nothing is left"
	case f.Image == "":
		return "given up; its record could not be read, so what pins its image is not known: dmloop unpin IMAGE clears it"
	case len(f.Pins) == 0:
		return fmt.Sprintf("given up; no pin of dmloop's is known on %s", printable(f.Image))
	}
	return fmt.Sprintf("given up; left on %s: %s (dmloop unpin clears that)", printable(f.Image), strings.Join(f.Pins, ", "))
}

func newTableCommand(env *cliEnv) *cobra.Command {
	o := &lifecycle.MapOptions{}
	concise := false
	cmd := &cobra.Command{
		Use:   "table IMAGE",
		Short: "Print the device-mapper table that map would load",
		Long: `Verify IMAGE and print the table that map would load, in dmsetup's format, or with
--concise in the format of dmsetup create --concise and dm-mod.create=.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runTable(cmd.Context(), env, *o, concise, args[0])
		},
	}
	surveyFlags(cmd, &o.SurveyOptions)
	cmd.Flags().BoolVar(&concise, "concise", false, "print one line with name, uuid and flags")
	cmd.Flags().BoolVarP(&o.ReadOnly, "read-only", "r", false, "with --concise: a read-only device")
	cmd.Flags().StringVar(&o.UUID, "uuid", "", "with --concise: use this UUID (32 hex digits)")
	cmd.Flags().StringVar(&o.Name, "name", "", "with --concise: the device's name")
	return cmd
}

func runTable(ctx context.Context, env *cliEnv, o lifecycle.MapOptions, concise bool, path string) error {
	sys := env.system()
	defer sys.Close()
	o.GuardLater = true // whoever loads the table sees to that, maybe on another machine
	plan, err := sys.PlanMap(ctx, path, o)
	if err != nil {
		return err
	}
	text := plan.Survey.Table.String()
	if concise {
		device := dmtable.ConciseDevice{Name: plan.Name, UUID: plan.UUID, ReadOnly: o.ReadOnly, Table: plan.Survey.Table}
		if text, err = dmtable.FormatConcise(device); err != nil {
			return err
		}
		text += "\n"
	}
	_, err = fmt.Fprint(env.stdout, text)
	return err
}
