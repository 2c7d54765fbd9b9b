package suite

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"dmloop/internal/vmtest/vm"
)

// buildTag marks files with tests that need a guest.
const buildTag = "vmtest"

// A guestPackage is a package with guest tests.
type guestPackage struct {
	Path  string // import path
	Dir   string
	Tests []string // functions in files with the build tag
}

// listed is what this package wants of go list's output.
type listed struct {
	ImportPath, Dir           string
	TestGoFiles, XTestGoFiles []string
}

func (l listed) testFiles() []string { return slices.Concat(l.TestGoFiles, l.XTestGoFiles) }

// discover finds the guest tests among the packages that match the patterns.
func discover(patterns []string) ([]guestPackage, error) {
	plain, err := list("", patterns)
	if err != nil {
		return nil, err
	}
	tagged, err := list(buildTag, patterns)
	if err != nil {
		return nil, err
	}
	var found []guestPackage
	for path, with := range tagged {
		without := plain[path].testFiles()
		pkg := guestPackage{Path: path, Dir: with.Dir}
		for _, file := range with.testFiles() {
			if slices.Contains(without, file) {
				continue
			}
			source, err := os.ReadFile(filepath.Join(with.Dir, file))
			if err != nil {
				return nil, err
			}
			names, err := testNames(file, source)
			if err != nil {
				return nil, err
			}
			pkg.Tests = append(pkg.Tests, names...)
		}
		if len(pkg.Tests) > 0 {
			found = append(found, pkg)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no guest tests in " + strings.Join(patterns, " "))
	}
	slices.SortFunc(found, func(a, b guestPackage) int { return strings.Compare(a.Path, b.Path) })
	return found, nil
}

// list runs go list with or without a build tag.
func list(tag string, patterns []string) (map[string]listed, error) {
	out, err := exec.Command("go", slices.Concat([]string{"list", "-tags=" + tag, "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles"}, patterns)...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w\n%s", err, exit.Stderr)
		}
		return nil, fmt.Errorf("go list: %w", err)
	}
	packages := map[string]listed{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		packages[p.ImportPath] = p
	}
}

// testNames returns the test functions that a source file declares.
func testNames(name string, source []byte) ([]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), name, source, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if ok && f.Recv == nil && testName.MatchString(f.Name.Name) && f.Name.Name != "TestMain" {
			names = append(names, f.Name.Name)
		}
	}
	return names, nil
}

var testName = regexp.MustCompile(`^Test([^a-z]|$)`)

// runsOn reports whether a test belongs on a kernel, by the prefix of its name
// (see package vmtest).
func runsOn(test, kernel string) bool {
	switch {
	case strings.HasPrefix(test, "TestFull"), strings.HasPrefix(test, "TestLong"):
		return kernel == vm.KernelUML
	case strings.HasPrefix(test, "TestQemu"):
		return kernel != vm.KernelUML
	case strings.HasPrefix(test, "TestNew"):
		return kernel == vm.KernelNew
	}
	return true
}

// choose narrows packages to the tests that belong on kernel and match the
// part of pattern before the first slash, as go test's -run does. Tests named
// TestLong… run only when the pattern says Long.
func choose(packages []guestPackage, kernel, pattern string) ([]guestPackage, error) {
	top, _, _ := strings.Cut(pattern, "/")
	match, err := regexp.Compile(top)
	if err != nil {
		return nil, err
	}
	var chosen []guestPackage
	for _, pkg := range packages {
		pkg.Tests = slices.DeleteFunc(slices.Clone(pkg.Tests), func(name string) bool {
			unasked := strings.HasPrefix(name, "TestLong") && !strings.Contains(top, "Long")
			return unasked || !runsOn(name, kernel) || !match.MatchString(name)
		})
		if len(pkg.Tests) > 0 {
			chosen = append(chosen, pkg)
		}
	}
	return chosen, nil
}

// runPattern is the -test.run argument for exactly these tests, keeping the
// subtest part of pattern.
func runPattern(tests []string, pattern string) string {
	_, sub, found := strings.Cut(pattern, "/")
	exact := "^(" + strings.Join(tests, "|") + ")$"
	if found {
		exact += "/" + sub
	}
	return exact
}
