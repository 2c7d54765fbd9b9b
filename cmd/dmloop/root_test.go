package main

import (
	"bytes"
	"testing"
)

// A root with one command must behave as the one with all.
func TestRootForOneCommand(t *testing.T) {
	help := func(only string, args ...string) string {
		var out bytes.Buffer
		root := newRootFor(&cliEnv{stdout: &out, stderr: &out}, only)
		root.SetArgs(args)
		if err := root.Execute(); err != nil {
			t.Errorf("%s %q: %v", only, args, err)
		}
		return out.String()
	}
	for _, c := range commands {
		if name := c.create(&cliEnv{}).Name(); name != c.name {
			t.Errorf("%s is called %s in the list", name, c.name)
		}
		if one, all := help(commandOf([]string{c.name, "x"}), c.name, "--help"), help("", c.name, "--help"); one != all || one == "" {
			t.Errorf("help of %s alone:\n%s\nwith all:\n%s", c.name, one, all)
		}
	}
	for _, args := range [][]string{nil, {"help", "map"}, {"--help"}, {"-v", "map"}, {"ls"}, {"nonsense"}} {
		if only := commandOf(args); only != "" {
			t.Errorf("%q needs only %s", args, only)
		}
	}
}
