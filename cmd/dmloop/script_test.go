//go:build !vmtest

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// stateVariable is the state directory of the scripts: no test touches the machine's.
const stateVariable = "DMLOOP_TEST_STATE"

func TestMain(m *testing.M) {
	if args, ok := os.LookupEnv(roleVariable); ok {
		os.Exit(runInTest(strings.Split(args, "\x1f")))
	}
	testscript.Main(m, map[string]func(){"dmloop": func() { os.Exit(runInTest(os.Args[1:])) }})
}

// roleVariable makes the test binary the program, with these arguments.
const roleVariable = "DMLOOP_TEST_ARGS"

func runInTest(args []string) int {
	env := &cliEnv{stdout: os.Stdout, stderr: os.Stderr, stateDir: os.Getenv(stateVariable)}
	return runWith(context.Background(), env, args)
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv(stateVariable, e.WorkDir+"/.state")
			e.Setenv("LONG", strings.Repeat("n", 200))
			e.Setenv("HUNDRED", strings.Repeat("n", 100))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"tidy":    tidy,
			"isjson":  isJSON,
			"oddfile": oddFile,
		},
	})
}

// exits CODE COMMAND...: the command ends with this code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	checkTidy(ts)
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// tidy: the last command printed nothing that only a programmer understands.
func tidy(ts *testscript.TestScript, neg bool, args []string) { checkTidy(ts) }

func checkTidy(ts *testscript.TestScript) {
	for _, name := range []string{"stdout", "stderr"} {
		text := ts.ReadFile(name)
		for _, bad := range []string{"panic:", "goroutine", "runtime error", ".go:", "%!", "<nil>", "&{", "0xc0"} {
			if strings.Contains(text, bad) {
				ts.Fatalf("%s has %q:\n%s", name, bad, text)
			}
		}
		for _, c := range text {
			if c != '\n' && c < ' ' && name == "stderr" {
				ts.Fatalf("%s has the control character %q", name, c)
			}
		}
	}
}

// isjson FILE WORD...: every line, or the whole, is JSON and has these members at the top.
func isJSON(ts *testscript.TestScript, neg bool, args []string) {
	dec := json.NewDecoder(bytes.NewReader([]byte(ts.ReadFile(args[0]))))
	dec.DisallowUnknownFields()
	seen := 0
	for dec.More() {
		var v map[string]json.RawMessage
		ts.Check(dec.Decode(&v))
		seen++
		if len(v) != len(args)-1 {
			ts.Fatalf("%d members, want %q", len(v), args[1:])
		}
		for _, name := range args[1:] {
			if _, ok := v[name]; !ok {
				ts.Fatalf("no member %q", name)
			}
		}
	}
	if seen == 0 {
		ts.Fatalf("%s is empty", args[0])
	}
}

// oddfile NAME: makes a file whose name is given as in Go's strings.
func oddFile(ts *testscript.TestScript, neg bool, args []string) {
	name, err := strconv.Unquote(`"` + args[0] + `"`)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(name), make([]byte, 513), 0o644))
	ts.Setenv("ODD", name)
}
