package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dmloop/internal/blockid"
	"dmloop/internal/boot"
	"dmloop/internal/lifecycle"
)

func newBootCommand(env *cliEnv) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "boot",
		Short: "Bring images up before the root file system is there",
		Long: `Save what an image is as a boot manifest, bring it up from there in an initramfs, or
write it as a kernel command line that needs none. See dmloop-boot(8).`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageError("a subcommand is needed, such as: dmloop boot save NAME")
		},
	}
	cmd.AddCommand(newBootSaveCommand(env), newBootListCommand(env), newBootRemoveCommand(env), newBootActivateCommand(env),
		newBootVerifyCommand(env), newBootReleaseCommand(env), newBootRootCommand(env), newBootCmdlineCommand(env))
	return cmd
}

// bootDir adds the flag for the folder of manifests.
func bootDir(cmd *cobra.Command, store *boot.Store) {
	cmd.Flags().StringVar(&store.Dir, "dir", boot.Dir, "folder of the manifests")
}

func newBootSaveCommand(env *cliEnv) *cobra.Command {
	var store boot.Store
	var before bool
	var fallback string
	cmd := &cobra.Command{
		Use:   "save NAME|IMAGE",
		Short: "Save a mapping as it is now for the next boots",
		Long: `Save a boot manifest of a mapping: which file it is made of and where that lies, on
which partition, and by which pins it is held. The initramfs has to be made anew
afterwards (update-initramfs -u, or dracut -f), since it has a copy. An image whose
blocks have moved since is refused at boot.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := boot.SaveOptions{Way: boot.Verify, Fallback: boot.Fallback(fallback)}
			if before {
				o.Way = boot.BeforeMount
			}
			if o.Fallback != boot.Shell && o.Fallback != boot.Loop {
				return usageError("--fallback is shell or loop, not %q", fallback)
			}
			sys := env.system()
			defer sys.Close()
			m, err := boot.Make(cmd.Context(), sys, blockid.Local(), args[0], o)
			if err != nil {
				return err
			}
			return store.Save(m)
		},
		ValidArgsFunction: completeMappings(env),
	}
	bootDir(cmd, &store)
	cmd.Flags().BoolVar(&before, "before-mount", false, "map from the manifest alone, before the host file system is mounted")
	cmd.Flags().StringVar(&fallback, "fallback", string(boot.Shell), "what a refused image leads to: shell, or loop for a loop device")
	jsonFlag(env, cmd)
	return cmd
}

func newBootListCommand(env *cliEnv) *cobra.Command {
	var store boot.Store
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the boot manifests",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			names, err := store.Names()
			if err != nil {
				return err
			}
			type row struct {
				Name     string        `json:"name"`
				Way      boot.Way      `json:"way"`
				Fallback boot.Fallback `json:"fallback"`
				Host     string        `json:"host_uuid"`
				Image    string        `json:"image"`
			}
			rows := make([]row, 0, len(names))
			var bad []error
			for _, name := range names {
				m, err := store.Load(name)
				if err != nil {
					bad = append(bad, err)
					continue
				}
				rows = append(rows, row{name, m.Way, m.Fallback, m.Host.UUID, m.Path})
			}
			if env.json {
				bad = append(bad, printJSON(env, struct {
					Manifests []row `json:"manifests"`
				}{rows}))
				return errors.Join(bad...)
			}
			for _, r := range rows {
				fmt.Fprintf(env.stdout, "%s %s %s UUID=%s %s\n", r.Name, r.Way, r.Fallback, r.Host, printable(r.Image))
			}
			return errors.Join(bad...)
		},
	}
	bootDir(cmd, &store)
	jsonFlag(env, cmd)
	return cmd
}

func newBootRemoveCommand(env *cliEnv) *cobra.Command {
	var store boot.Store
	cmd := &cobra.Command{
		Use:   "remove NAME...",
		Short: "Remove boot manifests",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return each(args, func(name string) error {
				err := store.Remove(name)
				if errors.Is(err, fs.ErrNotExist) {
					return &lifecycle.Error{Class: lifecycle.NotFound, Subject: name, Message: "no such boot manifest", Hint: "see: dmloop boot list"}
				}
				return err
			})
		},
	}
	bootDir(cmd, &store)
	jsonFlag(env, cmd)
	return cmd
}

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
over a loop device. A host that is not there yet is exit 6: call again. On the kernel
command line, dmloop=off does without, dmloop.fallback= overrides the manifest, and
dmloop.way=verify has an image compared that was saved with --before-mount.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBootActivate(cmd.Context(), env, store, wait, args)
		},
	}
	bootDir(cmd, &store)
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait so long for the host's device to appear")
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
	b := boot.Booter{System: sys, Devices: blockid.Local(), Log: env.logger(), Run: boot.RunDir, Wait: wait}
	return each(names, func(name string) error {
		m, err := store.Load(name)
		if err != nil {
			return err
		}
		if arguments.Look {
			m.Way = boot.Verify
		}
		out, err := b.Activate(ctx, m, arguments.Fallback)
		if errors.Is(err, blockid.ErrNotFound) {
			return &lifecycle.Error{Class: lifecycle.NotFound, Subject: name, Message: "the host file system is not there: " + err.Error()}
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
		return reported{lifecycle.StaleMapping}
	}
	return &lifecycle.Error{Class: lifecycle.StaleMapping, Subject: name, Message: "refused: " + strings.Join(out.Refused, "; "),
		Hint: "boot with dmloop.fallback=loop, or repair it from the shell"}
}

func newBootVerifyCommand(env *cliEnv) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify NAME...",
		Short: "Pin and verify images that the initramfs brought up",
		Long: `Set the pins again that a boot does not survive, such as the kernel's claim on a
sealed image, and compare the image with what was recorded. The unit
dmloop-boot@NAME.service runs this once the host file system is mounted. What is
wrong stands in the kernel's log, too, since the image may carry the root file system
and the guard is about to stop it.`,
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
			return &lifecycle.Error{Class: lifecycle.StaleMapping, Subject: v.Name, Message: v.Reason}
		}
	}
	return nil
}
