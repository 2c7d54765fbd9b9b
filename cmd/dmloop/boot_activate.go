package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/boot"
	"dmloop/internal/fault"
)

func newBootActivateCommand(env *cliEnv) *cobra.Command {
	var store boot.Store
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "activate [NAME...]",
		Short: "Bring images up from their manifests, in an initramfs",
		Long: `Bring up the images of the named manifests, or of all: find the host file system by
its UUID, make the shim, and map the image from it as the manifest says. An image
that differs from its manifest is refused, the reason is printed, and the fallback
taken: with shell nothing more is done (exit 4), with loop the same device is made
over a loop device. Exit 6 means that the host is not there yet: call again. On the
kernel command line, dmloop=off switches this off, dmloop.fallback= overrides the
manifest's fallback, and dmloop.way=verify has an image compared first although it was
saved with --before-mount.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBootActivate(cmd.Context(), env, store, wait, args)
		},
	}
	bootDir(cmd, &store)
	cmd.Flags().DurationVar(&wait, "wait", 0, "how long to wait for the host's device")
	jsonFlag(env, cmd)
	return cmd
}

func runBootActivate(ctx context.Context, env *cliEnv, store boot.Store, wait time.Duration, names []string) error {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	arguments := boot.ParseArguments(string(cmdline))
	if arguments.Off {
		return nil
	}
	if len(names) == 0 {
		if names, err = store.Names(); err != nil {
			return err
		}
	}
	sys := env.system()
	defer sys.Close()
	b := boot.Booter{System: sys, Devices: blockdev.Local(), Log: env.logger(), Run: boot.RunDir, Wait: wait}
	return each(names, func(name string) error {
		m, err := store.Load(name)
		if err != nil {
			return err
		}
		if arguments.Look {
			m.Way = boot.Verify
		}
		out, err := b.Activate(ctx, m, arguments.Fallback)
		if errors.Is(err, blockdev.ErrNotFound) {
			return &fault.Error{Class: fault.NotFound, Subject: name, Message: "the host file system is not there: " + err.Error()}
		}
		if err != nil {
			return err
		}
		return sayOutcome(env, name, out)
	})
}

// sayOutcome prints what became of an image, the first time it is known: on standard
// error, which in an initramfs is the console, and in the kernel's log, so that it can
// be read later.
func sayOutcome(env *cliEnv, name string, out boot.Outcome) error {
	if out.Device != "" {
		fmt.Fprintln(env.stdout, out.Device)
	}
	if len(out.Refused) == 0 {
		return nil
	}
	if !out.There {
		for _, reason := range out.Refused {
			kernelLog(env.stderr, "dmloop", fmt.Sprintf("%s: refused: %s", name, reason))
		}
	}
	if out.Fallback == boot.Loop {
		if !out.There {
			kernelLog(env.stderr, "dmloop", fmt.Sprintf("%s: on a loop device instead; in the running system save it again: dmloop boot save", name))
		}
		return nil
	}
	if out.There {
		return reported{fault.StaleMapping}
	}
	return &fault.Error{Class: fault.StaleMapping, Subject: name, Message: "refused: " + strings.Join(out.Refused, "; "),
		Remedy: advice.FallBack}
}
