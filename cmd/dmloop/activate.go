package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"dmloop/internal/activate"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/fault"
	"dmloop/internal/tab"
)

// defaultTab is the table of what is mapped at boot; DMLOOP_TAB names another.
const (
	defaultTab  = "/etc/dmlooptab"
	tabVariable = "DMLOOP_TAB"
)

// Entries worked on at a time, and how long each waits for the others.
const (
	activateJobs     = 8
	activatePatience = 15 * time.Minute
	activateSlow     = 20 * time.Second
)

func tabPath() string {
	if path := os.Getenv(tabVariable); path != "" {
		return path
	}
	return defaultTab
}

// activateOptions are the flags of activate and deactivate.
type activateOptions struct {
	all, initrd bool
	auto        bool // --all leaves out what does not come up by itself
	check       bool
	path        string
	named       bool // path was given with --tab
	wait        time.Duration
}

func newActivateCommand(env *cliEnv) *cobra.Command {
	o := &activateOptions{}
	cmd := &cobra.Command{
		Use:   "activate [NAME...]",
		Short: "Bring up the devices of lines in /etc/dmlooptab",
		Long: `Bring up the devices of the lines called NAME in dmlooptab(5), or with --all those of
every line without noauto: shims first, then images, several at a time. What is up
already is left as it is. Prints the path of each device. With --all, a line with
nofail that fails is only a warning.

--check brings nothing up. It says what in the table cannot work: lines with errors,
missing images and devices, and file systems that fstab does not mount from their shim.
It exits with 3 when it finds anything.`,
		Args: o.args,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.check {
				return o.runCheck(env)
			}
			o.auto = true
			return o.run(cmd.Context(), env, args, activate.Runner.Activate)
		},
		ValidArgsFunction: completeTab(o),
	}
	o.addFlags(env, cmd)
	cmd.Flags().BoolVar(&o.check, "check", false, "only say what in the table cannot work")
	cmd.Flags().BoolVar(&o.initrd, "initrd", false, "with --all: the lines marked x-initrd.attach, as in an initramfs")
	cmd.Flags().DurationVar(&o.wait, "wait", 0, "how long to wait for the devices of shims")
	return cmd
}

func (o *activateOptions) addFlags(env *cliEnv, cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "all lines instead of named ones")
	cmd.Flags().StringVar(&o.path, "tab", tabPath(), "read this `file`")
	jsonFlag(env, cmd)
}

func (o *activateOptions) args(cmd *cobra.Command, args []string) error {
	o.named = cmd.Flags().Changed("tab")
	if o.check {
		if o.all || o.initrd || len(args) > 0 {
			return usageError("--check is about the whole table")
		}
		return nil
	}
	if o.all == (len(args) > 0) {
		return usageError("give names of lines, or --all")
	}
	if o.initrd && !o.all {
		return usageError("--initrd goes with --all")
	}
	return nil
}

// run reads the table, picks the lines, works on them and prints what became of them.
func (o *activateOptions) run(ctx context.Context, env *cliEnv, names []string, do func(activate.Runner, context.Context, []tab.Entry) []activate.Result) error {
	if _, err := os.Stat(o.path); o.named && errors.Is(err, fs.ErrNotExist) {
		return &fault.Error{Class: fault.NotFound, Subject: o.path, Message: "no such file"}
	}
	table, bad := readTab(o.path)
	if table == nil && bad != nil {
		return bad
	}
	entries, err := o.pick(table, names)
	if err != nil {
		return errors.Join(err, bad)
	}
	runner := activate.Runner{
		Open:    func() activate.System { return env.system().WithPatience(activatePatience) },
		Devices: blockdev.Local(), Log: env.logger(), Jobs: activateJobs, Wait: o.wait, Slow: activateSlow,
	}
	results := do(runner, ctx, entries)
	var failed []error
	if o.all && !o.initrd {
		failed = append(failed, bad)
	} else { // a wrong line fails nothing that was asked for and is right, as the unit of another line
		for _, one := range flatten(bad) {
			env.logger().Warn(one.Error())
		}
	}
	for _, r := range results {
		if r.Err != nil && o.all && r.Entry.NoFail {
			env.logger().Warn("a line with nofail is not up", "name", r.Entry.Label, "error", r.Err)
			continue
		}
		failed = append(failed, r.Err)
	}
	if err := printActivated(env, results); err != nil {
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// pick returns the lines that are meant.
func (o *activateOptions) pick(table tab.Table, names []string) ([]tab.Entry, error) {
	switch {
	case !o.all:
		return activate.Select(table, names)
	case o.auto:
		return activate.Auto(table, o.initrd), nil
	}
	return table, nil
}

// readTab reads a table. The error is about lines that are wrong; the others are
// returned. A file that is not there has no lines.
func readTab(path string) (tab.Table, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return tab.Table{}, nil
	}
	if err != nil {
		return nil, err
	}
	table, err := tab.Parse(string(text))
	if err == nil {
		return table, nil
	}
	var wrong []error
	for _, one := range flatten(err) {
		wrong = append(wrong, &fault.Error{Class: fault.Usage, Subject: path, Message: one.Error(), Remedy: advice.SeeTabManual})
	}
	return table, errors.Join(wrong...)
}

func printActivated(env *cliEnv, results []activate.Result) error {
	type row struct {
		Name    string `json:"name"`
		Kind    string `json:"kind"`
		Device  string `json:"device"`
		Already bool   `json:"already"`
		OK      bool   `json:"ok"`
	}
	rows := make([]row, 0, len(results))
	for _, r := range results {
		if !env.json && r.Err == nil && r.Device != "" {
			fmt.Fprintln(env.stdout, r.Device)
		}
		rows = append(rows, row{r.Entry.Label, string(r.Entry.Kind), r.Device, r.There, r.Err == nil})
	}
	if !env.json {
		return nil
	}
	return printJSON(env, struct {
		Lines []row `json:"lines"`
	}{rows})
}

// completeTab offers the names of the table's lines.
func completeTab(o *activateOptions) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		table, _ := readTab(o.path)
		var names []string
		for _, e := range table {
			names = append(names, e.Label)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
