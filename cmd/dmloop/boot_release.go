package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"dmloop/internal/helper"
)

func newBootReleaseCommand(env *cliEnv) *cobra.Command {
	goingDown := false
	cmd := &cobra.Command{
		Use:   "release [NAME...]",
		Short: "Let the host file systems of boot images be unmounted",
		Long: `End the kernel's claim on sealed images and leave them immutable and mapped. The unit
dmloop-boot@NAME.service runs this when the machine goes down, before the host file
system is unmounted; dmloop-guard.service runs it with --going-down when it stops.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 0) != goingDown {
				return usageError("a NAME is needed, or --going-down without one")
			}
			sys := env.system()
			defer sys.Close()
			if goingDown {
				if !systemStops(cmd.Context()) {
					return nil
				}
				mappings, err := sys.List(cmd.Context())
				if err != nil {
					return err
				}
				for _, m := range mappings {
					if m.Image != "" { // else there is no record that tells what to release
						args = append(args, m.Name)
					}
				}
			}
			err := each(args, func(name string) error { return sys.ReleaseClaim(cmd.Context(), name, !goingDown) })
			if goingDown { // what is mapped still is systemd's to take down
				err = errors.Join(err, sys.ClearGate())
			}
			return err
		},
		ValidArgsFunction: completeMappings(env),
	}
	cmd.Flags().BoolVar(&goingDown, "going-down", false, "all images that may be released, when systemd is stopping the machine; otherwise do nothing")
	jsonFlag(env, cmd)
	return cmd
}

// systemStops reports whether systemd is shutting the machine down: systemctl prints
// the state, and exits with an error for every state but "running".
func systemStops(ctx context.Context) bool {
	cmd, err := helper.Command(ctx, "systemctl", "is-system-running")
	if err != nil {
		return false
	}
	state, _ := cmd.Output()
	return strings.TrimSpace(string(state)) == "stopping"
}
