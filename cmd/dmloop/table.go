package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"dmloop/dmtable"
	"dmloop/internal/lifecycle"
)

func newTableCommand(env *cliEnv) *cobra.Command {
	o := &lifecycle.MapOptions{}
	concise := false
	word := pinWord{words: []string{lifecycle.PinAuto, lifecycle.PinSwap}}
	cmd := &cobra.Command{
		Use:   "table IMAGE",
		Short: "Print the device-mapper table that map would load",
		Long: `Verify IMAGE and print the table that map would load, in dmsetup's format, or with
--concise in the format of dmsetup create --concise and dm-mod.create=.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.AsSealed = word.isSwap()
			return runTable(cmd.Context(), env, *o, concise, args[0])
		},
	}
	surveyFlags(cmd, &o.Options)
	cmd.Flags().Var(&word, "pin", "auto, or swap: the image is sealed, whatever its attributes say")
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
