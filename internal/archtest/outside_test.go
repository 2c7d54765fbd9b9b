package archtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// outside is a program of another module. It reads a layout, builds a table, compares
// what was recorded with what is, and makes a watch with a world of its own and one
// of the kernel's, and names no internal type for any of it.
const outside = `package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/guard/live"
)

type world struct{ file *os.File }

func (w world) Quick(context.Context, bool) guard.Observed {
	return guard.Observed{Identity: guard.Read(guard.Identity{FileID: guard.FileID{Inode: 12}, Links: 1}, nil)}
}

func (w world) Full(_ context.Context, quick guard.Observed) guard.Observed {
	quick.Layout = guard.Read(extents.Read(w.file))
	return quick
}

type printer struct{}

func (printer) Act(context.Context, guard.Policy, string) error { return nil }
func (printer) Restore(context.Context, []guard.PinKind) error          { return nil }
func (printer) Checked(bool, time.Duration)                      {}
func (printer) Report(r guard.Report)                            { fmt.Println(r.Decision.State, r.Findings) }

func main() {
	layout, err := extents.Read(os.Stdin)
	if err != nil {
		fmt.Println(err, layout.Problems(4096, 0))
	}
	table, err := dmtable.Build([]dmtable.Segment{{Device: dmtable.Device{Major: 8, Minor: 1}, Length: 8}})
	if err != nil {
		fmt.Println(err)
	}
	want := guard.Expected{Name: "image", Layout: layout, Table: table, Policy: guard.OnChangeReport}
	w := guard.NewWatch(want, world{os.Stdin}, printer{}, nil)
	w.Hint("outside")
	mapped, err := live.New(context.Background(), live.Mapping{Image: "image", UUID: "X", Table: table}, slog.Default())
	if err == nil {
		fmt.Println(mapped.Check(context.Background()), mapped.Close())
	}
	fmt.Println(w.Last().Decision.State, guard.Check(want, guard.Observed{}))
}
`

func TestUsableFromAnotherModule(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"main.go": outside,
		"go.sum":  string(sums),
		"go.mod":  "module example.com/outside\n\ngo 1.26.0\n\nrequire dmloop v0.0.0\n\nreplace dmloop => " + strconv.Quote(root) + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-mod=mod", "-o", os.DevNull, ".")
	build.Dir = dir
	build.Env = append(build.Environ(), "GOPROXY=off", "GOWORK=off", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
