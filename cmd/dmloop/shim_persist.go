package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/fault"
	"dmloop/internal/helper"
	"dmloop/internal/persist"
)

// persistOptions are the flags of shim that make it come back at every boot.
type persistOptions struct {
	point  string
	name   string
	remove string
	revert bool
	dryRun bool
}

const persistHelp = `
With --persist MOUNTPOINT, have the file system that is mounted there mounted from a
shim at every boot: a line is added to dmlooptab(5), the initramfs is rebuilt if it
mounts the file system, and the device in fstab is changed, in this order, so that
the machine boots whatever happens in between. It takes effect at the next boot.
--revert undoes it; --dry-run prints the edits and makes none. Copies of the files are
kept in /etc/dmloop/persist until --revert.`

func (o *persistOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.point, "persist", "", "have the file system at `MOUNTPOINT` mounted from a shim at every boot")
	f.StringVar(&o.remove, "remove", "", "take the shim called `NAME` down")
	f.StringVar(&o.name, "name", "", "with --persist: the shim's name instead of one made from MOUNTPOINT")
	f.BoolVar(&o.revert, "revert", false, "with --persist: undo it")
	f.BoolVar(&o.dryRun, "dry-run", false, "with --persist: print the edits and make none")
}

// args accepts DEVICE NAME, or --persist or --remove alone.
func (o *persistOptions) args(cmd *cobra.Command, args []string) error {
	if cmd.Flags().Changed("remove") {
		if len(args) > 0 || o.remove == "" || o.point != "" {
			return usageError("--remove takes the name of a shim and nothing else")
		}
	}
	if o.point == "" {
		if o.revert || o.dryRun || o.name != "" {
			return usageError("--revert, --dry-run and --name go with --persist")
		}
		if o.remove != "" {
			return nil
		}
		return cobra.ExactArgs(2)(cmd, args)
	}
	if len(args) > 0 || !filepath.IsAbs(o.point) {
		return usageError("--persist takes the absolute path of a mount point and nothing else")
	}
	return nil
}

func (o *persistOptions) run(env *cliEnv) error {
	machine := persist.Machine{Dir: persist.Dir, MakeInitramfs: makeInitramfs(env), Initramfs: persist.ReadInitramfs, Step: func(what string) {
		fmt.Fprintln(env.stderr, what)
	}}
	plans, err := machine.Plans()
	if err != nil {
		return err
	}
	point := filepath.Clean(o.point)
	plan, inForce := persist.Plan{}, false
	for _, p := range plans {
		if p.Point == point {
			plan, inForce = p, true
		}
	}
	switch {
	case o.revert && !inForce:
		return &fault.Error{Class: fault.NotFound, Subject: point, Message: "no shim is in force for this mount point"}
	case !inForce: // else an earlier run is finished
		facts, err := persist.Gather(point, o.name, persist.LocalPaths(tabPath()), blockdev.Local())
		if err == nil {
			plan, err = persist.Make(facts)
		}
		if err != nil {
			return persistError(point, err)
		}
	}
	if o.dryRun {
		fmt.Fprint(env.stdout, describe(plan, o.revert))
		return nil
	}
	if unix.Geteuid() != 0 {
		return &fault.Error{Class: fault.NotPermitted, Subject: point, Message: "only root may change how the machine boots", Remedy: advice.Sudo}
	}
	if o.revert {
		err = machine.Revert(plan)
	} else {
		err = machine.Apply(plan)
	}
	if err != nil {
		return persistError(point, err)
	}
	reloadUnits()
	fmt.Fprintln(env.stderr, "done; it takes effect at the next boot")
	return nil
}

func persistError(point string, err error) error {
	var refused *persist.RefusedError
	if errors.As(err, &refused) {
		return &fault.Error{Class: fault.NotMappable, Subject: point, Message: refused.Message, Remedy: refused.Remedy}
	}
	return &fault.Error{Class: fault.ClassOf(err), Subject: point, Err: err,
		Remedy: advice.GoOnOrRevert}
}

// describe prints the edits of a plan in the order in which they are made.
func describe(p persist.Plan, revert bool) string {
	var b strings.Builder
	edit := func(e persist.Edit) {
		from, to := e.Old, e.New
		if revert {
			from, to = to, from
		}
		fmt.Fprintf(&b, "edit %s\n", e.Path)
		if from != "" {
			fmt.Fprintf(&b, "-%s\n", from)
		}
		if to != "" {
			fmt.Fprintf(&b, "+%s\n", to)
		}
	}
	steps := []func(){
		func() { edit(p.Tab) },
		func() {
			if p.Maker != "" {
				fmt.Fprintf(&b, "run %s\n", strings.Join(p.Maker.Command(), " "))
			}
		},
		func() {
			for _, e := range p.Fstab {
				edit(e)
			}
		},
	}
	if revert {
		steps[0], steps[1], steps[2] = steps[2], steps[0], steps[1]
	}
	for _, step := range steps {
		step()
	}
	return b.String()
}

// makeInitramfs runs the maker and has its result on the disk before it returns: the
// next edit relies on it.
func makeInitramfs(env *cliEnv) func(persist.Maker) error {
	return func(m persist.Maker) error {
		argv := m.Command()
		cmd, err := helper.Command(context.Background(), argv[0], argv[1:]...)
		if err != nil {
			return err
		}
		cmd.Stdout, cmd.Stderr = env.stderr, env.stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
		}
		unix.Sync()
		return nil
	}
}

// reloadUnits has systemd, where it runs, read the edited files. The next boot does
// so in any case.
func reloadUnits() {
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		if cmd, err := helper.Command(context.Background(), "systemctl", "daemon-reload"); err == nil {
			_ = cmd.Run()
		}
	}
}
