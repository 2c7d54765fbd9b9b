//go:build !vmtest

package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/internal/activate"
	"dmloop/internal/fault"
	"dmloop/internal/tab"
)

// A line that is wrong fails a command for all lines, and none for another line: that
// is the unit of a device which the boot may wait for.
func TestWrongLinesFailNoOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tab")
	if err := os.WriteFile(path, []byte("good /a.img - x-initrd.attach\nbad b.img\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := func(_ activate.Runner, _ context.Context, entries []tab.Entry) (results []activate.Result) {
		for _, e := range entries {
			results = append(results, activate.Result{Entry: e, Device: "/dev/mapper/" + e.Label})
		}
		return results
	}
	for _, c := range []struct {
		o     activateOptions
		names []string
		want  fault.Class // 0 for success
	}{
		{activateOptions{path: path, auto: true}, []string{"good"}, 0},
		{activateOptions{path: path, auto: true, all: true, initrd: true}, nil, 0},
		{activateOptions{path: path, auto: true, all: true}, nil, fault.Usage},
		{activateOptions{path: path, auto: true}, []string{"bad"}, fault.NotFound},
		{activateOptions{path: path + ".none", auto: true, all: true}, nil, 0},
		{activateOptions{path: path + ".none", auto: true, all: true, named: true}, nil, fault.NotFound},
	} {
		var out, errOut strings.Builder
		err := c.o.run(t.Context(), &cliEnv{stdout: &out, stderr: &errOut}, c.names, up)
		if c.want == 0 && err != nil || c.want != 0 && classOf(err) != c.want {
			t.Errorf("%+v %q: %v", c.o, c.names, err)
		}
		if missing := c.o.path != path; !missing && !strings.Contains(errOut.String(), "line 2") && (err == nil || !strings.Contains(err.Error(), "line 2")) {
			t.Errorf("%+v %q: nothing is said of line 2: %s, %v", c.o, c.names, &errOut, err)
		}
	}
}
