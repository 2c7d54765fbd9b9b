package main

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Every command has examples, and the command line parser takes each of them.
func TestExamples(t *testing.T) {
	fresh := func() *cobra.Command { return newRootCommand(&cliEnv{stdout: io.Discard, stderr: io.Discard}) }
	known := map[string]bool{}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		path := strings.TrimPrefix(c.CommandPath(), "dmloop ")
		if c.HasSubCommands() {
			for _, sub := range c.Commands() {
				walk(sub)
			}
			return
		}
		if known[path] = true; c.Example == "" && path != "help" {
			t.Errorf("dmloop %s has no example", path)
		}
	}
	walk(fresh())
	for path, text := range examples() {
		if !known[path] {
			t.Errorf("there is no command %q", path)
		}
		for line := range strings.Lines(text) {
			parses(t, fresh(), line)
		}
	}
}

// parses fails the test unless the command line parser takes what a line has of dmloop.
func parses(t *testing.T, root *cobra.Command, line string) {
	t.Helper()
	line, _, _ = strings.Cut(line, " >")
	for _, part := range strings.Split(strings.ReplaceAll(line, "||", "&&"), " && ") {
		words := strings.Fields(part)
		if words[0] != "dmloop" {
			continue
		}
		c, rest, err := root.Find(words[1:])
		if err == nil {
			err = c.ParseFlags(rest)
		}
		if err == nil {
			err = c.ValidateArgs(c.Flags().Args())
		}
		if err == nil {
			err = c.ValidateFlagGroups()
		}
		if err != nil {
			t.Errorf("%s: %v", part, err)
		}
	}
}

// tutorialLines are the commands of dmloop-tutorial(7), in order.
func tutorialLines(t *testing.T) (lines []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/dmloop-tutorial.7.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if command, is := strings.CutPrefix(line, "    # "); is {
			lines = append(lines, strings.TrimSpace(command))
		}
	}
	if len(lines) < 20 {
		t.Fatalf("%d lines", len(lines))
	}
	return lines
}

// Every command of the tutorial is one. A guest runs them all.
func TestTutorialParses(t *testing.T) {
	for _, line := range tutorialLines(t) {
		parses(t, newRootCommand(&cliEnv{stdout: io.Discard, stderr: io.Discard}), line)
	}
}
