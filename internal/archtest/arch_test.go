// Package archtest holds the rules of who may import whom. It has no code.
package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "dmloop/"

// level of each package that the program is made of: a package imports only
// packages of lower levels, so the pipeline has one direction.
var level = map[string]int{
	"dmtable":             0, // tables as plain values
	"internal/atomicfile": 0,
	"internal/exitcodes":  0,
	"internal/helper":     0,
	"internal/ioctl":      0, // the one place that makes the call
	"internal/kernlist":   0, // the kernel's lists as text
	"internal/ration":     0,
	"extents":             1, // layouts as plain values
	"internal/frozen":     1,
	"internal/inode":      1, // the one home of inode flags and leases
	"internal/dm/wire":    1,
	"internal/udev":       1,
	"guard":               2, // judges values; the world comes in through interfaces
	"internal/advice":     2, // what can be done, in names; cmd has the words
	"internal/dm":         2,
	"internal/size":       2,
	"internal/swap":       2,
	"internal/gate":       3, // the programs in the kernel that refuse
	"internal/watch":      3,
	"internal/btrfs":      3,
	"internal/fstype":     3, // what is known of each file system, in one table
	"internal/pin":        4,
	"internal/record":     3,
	"internal/seal":       4,
	"internal/tab":        3,
	"internal/blockdev":   4,
	"internal/guardrpc":   4,
	"internal/image":      5,
	"internal/backing":    6,
	"internal/claim":      6, // the one place that calls swapon
	"internal/fault":      6, // what a command fails with
	"internal/observe":    6,
	"internal/guardd":     7,
	"internal/hostfiles":  7,
	"internal/mapper":     7, // device-mapper and udev, the steps that belong together
	"internal/persist":    7,
	"internal/survey":     8, // looks at an image; writes nothing
	"guard/live":          9, // the guard on the running kernel, for other programs
	"internal/lifecycle":  9, // the use cases: sees the whole pipeline
	"internal/activate":   10,
	"internal/boot":       10,
	"cmd/dmloop":          11,
}

// testOnly packages never get into the program.
var testOnly = []string{"internal/gate/sum", "internal/gate/sums", "internal/vmtest", "internal/dm/dmtest", "internal/cmd", "internal/archtest"}

// A ban keeps an import to the packages that need it. Packages are given
// without the module's name; prefixes do.
type ban struct {
	imported string
	only     []string // allowed here
	reason   string
}

var bans = []ban{
	{"unsafe", []string{"internal/ioctl", "internal/swap", "internal/frozen"}, "pointers are handed to the kernel in three places"},
	{"github.com/cilium/ebpf", []string{"internal/gate"}, "programs are loaded into the kernel in one place"},
	{"github.com/spf13/cobra", []string{"cmd/dmloop"}, "only the command knows that it is a command"},
	{"os/exec", []string{"internal/helper", "internal/guardrpc"}, "the kernel is asked by calls, not through other programs; a guard is started, and what internal/helper finds"},
	{"testing", nil, "test code stays out of the program"},
	{"C", nil, "the program is static and runs in an initramfs"},
}

// pure packages compute values: nothing of the running system gets in.
var pure = map[string][]string{
	"internal/size":     {"os", "syscall", "golang.org/x/sys/unix"},
	"internal/kernlist": {"os", "syscall", "golang.org/x/sys/unix"},
	"internal/tab":      {"os", "syscall", "golang.org/x/sys/unix"},
	"dmtable":           {"os", "syscall", "golang.org/x/sys/unix", "dmloop/extents"},
	"internal/dm/wire":  {"os", "syscall", "golang.org/x/sys/unix"},
}

type goPackage struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func TestLevels(t *testing.T) {
	packages := listPackages(t)
	for name, p := range packages {
		mine, known := level[name]
		if !known {
			t.Errorf("%s has no level: give it one in this file", name)
			continue
		}
		for _, imported := range p.Imports {
			below, ours := strings.CutPrefix(imported, module)
			if !ours {
				continue
			}
			theirs, known := level[below]
			switch {
			case !known:
				t.Errorf("%s imports %s, which is for tests or has no level", name, below)
			case theirs >= mine:
				t.Errorf("%s (level %d) imports %s (level %d)", name, mine, below, theirs)
			}
		}
	}
}

// The reader's table of the layers names every package, and no other.
func TestArchitectureNamesEveryPackage(t *testing.T) {
	text, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "| layer | packages | knows |")
	if !found {
		t.Fatal("docs/architecture.md has no table of layers")
	}
	named := map[string]bool{}
	for line := range strings.Lines(strings.TrimLeft(table, "\n")) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			break
		}
		prefix := ""
		for _, name := range strings.Split(cells[2], "`") {
			name = strings.TrimSpace(name)
			if strings.Trim(name, "-, ") == "" {
				continue
			}
			if strings.HasPrefix(name, "internal/") {
				prefix = "internal/" // of those after it in the same cell
			}
			if _, exported := level[name]; !exported {
				name = prefix + strings.TrimPrefix(name, prefix)
			}
			named[name] = true
			if _, known := level[name]; !known {
				t.Errorf("docs/architecture.md names %s, which is no package of the program", name)
			}
		}
	}
	for name := range level {
		if !named[name] {
			t.Errorf("docs/architecture.md does not name %s in its table of layers", name)
		}
	}
}

func TestBans(t *testing.T) {
	packages := listPackages(t)
	for _, b := range bans {
		for _, where := range b.only {
			if _, exists := packages[where]; !exists {
				t.Errorf("the rule on %s names %s, which is gone", b.imported, where)
			}
		}
		for name, p := range packages {
			if slices.Contains(p.Imports, b.imported) && !slices.Contains(b.only, name) {
				t.Errorf("%s imports %s: %s", name, b.imported, b.reason)
			}
		}
	}
	for name, banned := range pure {
		p, exists := packages[name]
		if !exists {
			t.Errorf("%s is gone", name)
		}
		for _, imported := range p.Imports {
			if slices.Contains(banned, imported) {
				t.Errorf("%s imports %s, but is to be pure", name, imported)
			}
		}
	}
}

func TestProgramHasNoTestCode(t *testing.T) {
	command, exists := listPackages(t)["cmd/dmloop"]
	if !exists {
		t.Fatal("cmd/dmloop is gone")
	}
	for _, dep := range command.Deps {
		if dep == "testing" || isTestOnly(strings.TrimPrefix(dep, module)) {
			t.Errorf("the program contains %s", dep)
		}
	}
}

func isTestOnly(name string) bool {
	return slices.ContainsFunc(testOnly, func(prefix string) bool {
		return name == prefix || strings.HasPrefix(name, prefix+"/")
	})
}

// listPackages returns the program's packages without the module's name.
func listPackages(t *testing.T) map[string]goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,Deps", module+"...")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	packages := map[string]goPackage{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if name := strings.TrimPrefix(p.ImportPath, module); !isTestOnly(name) {
			packages[name] = p
		}
	}
	if len(packages) < len(level) {
		for name := range level {
			if _, exists := packages[name]; !exists {
				t.Errorf("%s has a level and is gone", name)
			}
		}
	}
	return packages
}
