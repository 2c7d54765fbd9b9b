package main

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// walk visits every command.
func walk(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, sub := range c.Commands() {
		walk(sub, visit)
	}
}

// TestFlags: what holds for one command's flags holds for all.
func TestFlags(t *testing.T) {
	type form struct{ short, kind string }
	seen := map[string]form{}
	count := 0
	walk(newRootCommand(&cliEnv{stdout: io.Discard, stderr: io.Discard}), func(c *cobra.Command) {
		count++
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || c.Short[:1] != strings.ToUpper(c.Short[:1]) {
			t.Errorf("%s: short help %q", c.CommandPath(), c.Short)
		}
		if c.HasParent() && !c.HasSubCommands() {
			if c.RunE == nil || c.Run != nil {
				t.Errorf("%s: runs without an error to return", c.CommandPath())
			}
			if !strings.Contains(c.Long, "Exit status: 0 done") && !strings.Contains(c.Parent().Long, "Exit status: 0 done") {
				t.Errorf("%s: the help has no exit codes", c.CommandPath())
			}
			if strings.HasPrefix(strings.TrimSpace(c.Long), "Exit status") {
				t.Errorf("%s: the help does not say what it does", c.CommandPath())
			}
			if c.Args == nil && !strings.Contains(c.Use, "...]") {
				t.Errorf("%s: takes any arguments, and its usage line %q does not say so", c.CommandPath(), c.Use)
			}
		}
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name == "help" {
				return
			}
			where := c.CommandPath() + " --" + f.Name
			if f.Usage == "" || strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%s: help %q", where, f.Usage)
			}
			if f.Name != strings.ToLower(f.Name) || strings.ContainsAny(f.Name, "_ ") {
				t.Errorf("%s: name", where)
			}
			got := form{f.Shorthand, f.Value.Type()}
			if before, ok := seen[f.Name]; ok && before != got {
				t.Errorf("%s is %+v, and %+v with another command", where, got, before)
			}
			seen[f.Name] = got
		})
	})
	for name, want := range map[string]string{"read-only": "r", "offset": "o", "partscan": "P", "json": "J", "noheadings": "n", "bytes": "b"} {
		if seen[name].short != want {
			t.Errorf("--%s is -%s, in losetup -%s", name, seen[name].short, want)
		}
	}
	if count < 15 {
		t.Errorf("only %d commands were visited", count)
	}
}

// Nothing of one run may reach the next: flags live in the command, not in globals.
func TestHelpOfEveryCommand(t *testing.T) {
	walk(newRootCommand(&cliEnv{stdout: io.Discard, stderr: io.Discard}), func(c *cobra.Command) {
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		var out, errOut strings.Builder
		if code := run(context.Background(), args, &out, &errOut); code != 0 || errOut.Len() > 0 || !strings.Contains(out.String(), "Usage:") {
			t.Errorf("%s: exit code %d, %q, %q", args, code, out.String(), errOut.String())
		}
		args[len(args)-1] = "--no-such-flag"
		out.Reset()
		if code := run(context.Background(), args, &out, &errOut); code != 2 || out.Len() > 0 || !strings.Contains(errOut.String(), "no-such-flag") {
			t.Errorf("%s: exit code %d, %q, %q", args, code, out.String(), errOut.String())
		}
	})
}
