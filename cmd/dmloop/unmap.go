package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"dmloop/guard"
	"dmloop/internal/fault"
	"dmloop/internal/lifecycle"
)

func newUnmapCommand(env *cliEnv) *cobra.Command {
	o := &lifecycle.UnmapOptions{}
	all, forget := false, false
	cmd := &cobra.Command{
		Use:   "unmap NAME|IMAGE...",
		Short: "Remove mappings and release their images",
		Long: `Remove mappings, given by name or by image, and undo the pins that dmloop set. Returns
when the device is gone, unless --deferred is given.

--forget gives up the record of a mapping whose device is gone and whose image cannot
be released, for example because its disk will not come back. It prints what stays behind.`,
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
		if all && fault.ClassOf(err) == fault.NotFound {
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
		out = append(out, forgottenJSON{left.Name, left.Image, guard.PinNames(left.Pins), left.Released})
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
	return fmt.Sprintf("given up; left on %s: %s (dmloop unpin clears that)", printable(f.Image), strings.Join(guard.PinNames(f.Pins), ", "))
}
