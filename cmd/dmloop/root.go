package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"dmloop/internal/fault"
	"dmloop/internal/guardrpc"
	"dmloop/internal/ioctl"
	"dmloop/internal/lifecycle"
	"dmloop/internal/record"
)

// cliEnv is what every command gets: where to print and what to work on.
type cliEnv struct {
	stdout, stderr io.Writer
	stateDir       string
	json           bool
	verbose        bool
}

// terminal reports whether w is a terminal, where progress bars and aligned
// columns belong.
func terminal(w io.Writer) bool {
	if o, ok := w.(*output); ok {
		w = o.to
	}
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// logger writes to standard error: warnings, and with --verbose everything.
func (e *cliEnv) logger() *slog.Logger {
	options := &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: inWords}
	switch {
	case e.verbose && e.json:
		return slog.New(slog.NewJSONHandler(e.stderr, options))
	case e.verbose:
		return slog.New(slog.NewTextHandler(e.stderr, options))
	}
	return slog.New(&warnings{out: e.stderr, json: e.json})
}

// logKernelCalls tells with --verbose where the time in the kernel went.
func (e *cliEnv) logKernelCalls() {
	if !e.verbose {
		return
	}
	for _, t := range ioctl.Totals() {
		e.logger().Debug("kernel calls", "ioctl", t.Request, "calls", t.Calls, "took", t.Took)
	}
}

// leasePatience is 0 for what package lifecycle has. A test that loses many races on
// purpose waits for less.
var leasePatience time.Duration

// system opens what the use cases work on.
func (e *cliEnv) system() *lifecycle.System {
	if e.verbose {
		ioctl.Count()
	}
	return lifecycle.NewSystem(e.stateDir, e.logger()).WithGuard(guardrpc.NewGuard(e.stateDir)).WithLeasePatience(leasePatience)
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return runWith(ctx, &cliEnv{stdout: stdout, stderr: stderr, stateDir: record.DefaultDir}, args)
}

func runWith(ctx context.Context, env *cliEnv, args []string) int {
	out := &output{to: env.stdout}
	env.stdout = out
	root := newRootFor(env, commandOf(args))
	root.SetArgs(args)
	defer env.logKernelCalls()
	err := explainUnknown(root, root.ExecuteContext(ctx))
	if out.err != nil && !errors.Is(err, out.err) {
		err = errors.Join(err, out.err)
	}
	if err == nil {
		return 0
	}
	// The parser gives up at a wrong flag, and may not have come to this one.
	env.json = env.json || wantsJSON(args)
	return report(env, err)
}

// output is standard output, which remembers that something could not be written: an
// answer that is lost or cut short is not a success.
type output struct {
	to  io.Writer
	err error
}

func (o *output) Write(b []byte) (int, error) {
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.to.Write(b)
	if err != nil {
		cause := err
		var perr *fs.PathError
		if errors.As(err, &perr) {
			cause = perr.Err
		}
		o.err = &fault.Error{Class: fault.Failed, Subject: "standard output", Message: "the answer cannot be written", Err: cause}
	}
	return n, o.err
}

// wantsJSON reports whether the flag for JSON is among the arguments.
func wantsJSON(args []string) bool {
	for _, a := range args {
		switch a {
		case "--":
			return false
		case "--json", "-J":
			return true
		}
	}
	return false
}

// negative is the flag parser's complaint about a negative number.
const negative = `^unknown shorthand flag: '[0-9]' in (-\S+)$`

// groups are the headings under which the help lists the commands.
var groups = []*cobra.Group{
	{ID: "images", Title: "Images:"},
	{ID: "mappings", Title: "Mappings:"},
	{ID: "pins", Title: "What keeps the blocks in place:"},
	{ID: "boot", Title: "Host file systems, activation and boot:"},
}

// commands are all there are, in the order of the pipeline.
var commands = []struct {
	name, group string
	create      func(*cliEnv) *cobra.Command
}{
	{"create", "images", newCreateCommand},
	{"provision", "images", newProvisionCommand},
	{"grow", "images", newGrowCommand},
	{"check", "images", newCheckCommand},
	{"extents", "images", newExtentsCommand},
	{"table", "images", newTableCommand},
	{"map", "mappings", newMapCommand},
	{"unmap", "mappings", newUnmapCommand},
	{"list", "mappings", newListCommand},
	{"status", "mappings", newStatusCommand},
	{"verify", "mappings", newVerifyCommand},
	{"pin", "pins", newPinCommand},
	{"unpin", "pins", newUnpinCommand},
	{"seal", "pins", newSealCommand},
	{"unseal", "pins", newUnsealCommand},
	{"gate", "pins", newGateCommand},
	{"guard", "pins", newGuardCommand},
	{"shim", "boot", newShimCommand},
	{"activate", "boot", newActivateCommand},
	{"deactivate", "boot", newDeactivateCommand},
	{"boot", "boot", newBootCommand},
	{"completion", "", newCompletionCommand},
	{"version", "", newVersionCommand},
}

// commandOf returns the command that the arguments begin with, if there is exactly one.
func commandOf(args []string) string {
	for _, c := range commands {
		if len(args) > 0 && args[0] == c.name {
			return c.name
		}
	}
	return ""
}

func init() { cobra.EnableCommandSorting = false } // they are in the order of the pipeline

func newRootCommand(env *cliEnv) *cobra.Command { return newRootFor(env, "") }

// newRootFor makes the root with one command only, since making all of them takes
// a fifth of the time to start; with none named, all are there.
func newRootFor(env *cliEnv, only string) *cobra.Command {
	root := &cobra.Command{
		Use:   "dmloop",
		Short: "Block devices from regular files, without the loop driver",
		Long: `dmloop maps a regular file as a block device: it proves that the file is fully
allocated and unshared, holds its blocks in place, and hands them to device-mapper
as a linear table. I/O then goes straight to the disk.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return usageError("a command is needed, such as: dmloop map image.img")
		},
	}
	root.SetOut(env.stdout)
	root.SetErr(env.stderr)
	root.CompletionOptions.DisableDefaultCmd = true
	root.Version = version
	root.SetVersionTemplate("dmloop {{.Version}}\n")
	root.SetHelpCommand(newHelpCommand(root))
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if m := regexp.MustCompile(negative).FindStringSubmatch(err.Error()); m != nil {
			return usageError("%s is neither a size nor a flag", m[1])
		}
		return usageError("%v", err)
	})
	root.AddGroup(groups...)
	flags := root.PersistentFlags()
	flags.BoolVarP(&env.verbose, "verbose", "v", false, "log every step and kernel call to standard error")
	for _, c := range commands {
		if only == "" || c.name == only {
			command := c.create(env)
			command.GroupID = c.group
			root.AddCommand(command)
		}
	}
	explainArgs(root)
	addExamples(root)
	for _, c := range root.Commands() {
		if c.Long == "" {
			c.Long = c.Short + "."
		}
		c.Long = strings.TrimSpace(c.Long) + "\n\n" + exitStatusHelp
	}
	return root
}

// newHelpCommand is cobra's, except that an unknown topic is an error.
func newHelpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND...]",
		Short: "Print the help of a command",
		RunE: func(_ *cobra.Command, args []string) error {
			c, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usageError("there is no help on %q", strings.Join(args, " "))
			}
			c.InitDefaultHelpFlag()
			return c.Help()
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) (names []string, _ cobra.ShellCompDirective) {
			if c, rest, err := root.Find(args); err == nil && len(rest) == 0 {
				for _, sub := range c.Commands() {
					names = append(names, sub.Name())
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

// jsonFlag adds --json to a command.
func jsonFlag(env *cliEnv, cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&env.json, "json", "J", false, "print JSON, sizes and offsets in bytes")
}

// each runs do for every target and joins what fails, so that one does not keep
// the others from their turn.
func each(targets []string, do func(string) error) error {
	var failed []error
	for _, t := range targets {
		if err := do(t); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
