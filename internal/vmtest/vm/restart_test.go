package vm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a made-up guest says on its channels: a shell script that has the control
// channel as descriptor 5.
const (
	saysReady = `echo '{"kind":"ready","text":"9.9"}' >&5; echo begun >&3; `
	saysDone  = `echo '{"kind":"exit","command":0,"code":0}' >&5; echo '{"kind":"done"}' >&5; `
	panics    = `echo "int3: 0000 [#1] SMP"; echo "Kernel panic - not syncing: Fatal exception"; exit 0`
)

// TestRestart starts made-up guests that die at their first starts: of these only the
// ones that had begun nothing are started again.
func TestRestart(t *testing.T) {
	for _, c := range []struct {
		name     string
		script   string // $start counts from 1
		starts   int
		problem  string // part of the error, empty for none
		restarts int
	}{
		{"lives", saysReady + saysDone, 1, "", 0},
		{"panics at its first boot", `[ $start -gt 1 ] || { ` + panics + `; }; ` + saysReady + saysDone, 2, "", 1},
		{"is killed at its first two", `[ $start -gt 2 ] || kill -9 $$; ` + saysReady + saysDone, 3, "", 2},
		{"panics at every boot", panics, 3, "died before its first command", 2},
		{"dies with its first command", saysReady + panics, 1, "ended without an exit code of command 1 of 1", 0},
		{"gives up", `echo '{"kind":"error","text":"no root"}' >&5`, 1, "process 1 failed: no root", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			counter := filepath.Join(t.TempDir(), "starts")
			guest := func(_ Config, dir string) (argv, env []string, err error) {
				if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
					return nil, nil, fmt.Errorf("a start that is not fresh: %v, %v", left, err)
				}
				script := fmt.Sprintf("echo >>%[1]s; start=$(wc -l <%[1]s); %s", counter, c.script)
				return []string{"/bin/sh", "-c", script}, nil, nil
			}
			var out bytes.Buffer
			var heard []string
			cfg := Default(Kernel61)
			cfg.Disks, cfg.DiskSize, cfg.Commands = 1, 4096, make([]Command, 1)
			cfg.Stdout, cfg.Stderr = &out, &out
			cfg.Restarted = func(e *GuestError) { heard = append(heard, e.Error()) }
			res, err := try(t.Context(), cfg, guest)

			if starts, err := os.ReadFile(counter); err != nil || len(starts) != c.starts {
				t.Errorf("%d starts, %v; want %d", len(starts), err, c.starts)
			}
			if res.Restarts != c.restarts || len(heard) != c.restarts {
				t.Errorf("%d restarts, heard of %q; want %d", res.Restarts, heard, c.restarts)
			}
			for _, text := range heard {
				if !strings.Contains(text, "died before its first command") {
					t.Errorf("the reason of a restart: %s", text)
				}
			}
			var guestErr *GuestError
			switch {
			case c.problem == "" && (err != nil || out.String() != "begun\n" || len(res.Codes) != 1):
				t.Errorf("%v, printed %q, codes %v", err, out.String(), res.Codes)
			case c.problem != "" && (!errors.As(err, &guestErr) || !strings.Contains(guestErr.Problem, c.problem)):
				t.Errorf("%v, want %q", err, c.problem)
			}
		})
	}
}
