package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"dmloop/internal/fault"
	"dmloop/internal/lifecycle"
)

func newBootVerifyCommand(env *cliEnv) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify NAME...",
		Short: "Pin and verify images that the initramfs brought up",
		Long: `Set again the pins that do not survive a reboot, such as the kernel's claim on a
sealed image, and compare the image with what was recorded. The unit
dmloop-boot@NAME.service runs this once the host file system is mounted. What is
wrong is written to the kernel's log too, since the image may carry the root file
system and the guard is about to stop it.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			sys := env.system().WithPatience(time.Minute)
			defer sys.Close()
			return each(args, func(name string) error {
				err := verifyBooted(cmd.Context(), sys, name)
				if err != nil {
					kernelLog(env.stderr, "dmloop", fmt.Sprintf("%s: refused: %v", name, err))
				}
				return err
			})
		},
		ValidArgsFunction: completeMappings(env),
	}
	jsonFlag(env, cmd)
	return cmd
}

// verifyBooted pins and compares one image that the initramfs brought up.
func verifyBooted(ctx context.Context, sys *lifecycle.System, name string) error {
	if err := sys.Repin(ctx, name); err != nil {
		return err
	}
	found, err := sys.Verify(ctx, name)
	if err != nil {
		return err
	}
	for _, v := range found {
		if v.State.Broken() {
			return &fault.Error{Class: fault.StaleMapping, Subject: v.Name, Message: v.Reason}
		}
	}
	return nil
}
