package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// ruleNames reads the rules from the source: constant name -> stable name.
func ruleNames(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../extents/problem.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	rules := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Values) == 1 {
			if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "Rule" {
				name, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				rules[spec.Names[0].Name] = name
			}
		}
		return true
	})
	return rules
}

// The contract's list, written out: a rule that is renamed breaks scripts.
const contract = `not-regular empty size-unaligned unsupported-fs hole unwritten delalloc unknown shared encoded encrypted
	inline tail not-aligned compressed verity dax data-journal realtime multi-device out-of-range overlap unstable dirty-cache
	open-elsewhere active-swap seal-corrupt unproven btrfs-cow btrfs-profile unsealed unpinnable mounted-directly
	unresolvable-stack indirect too-many-extents`

func TestRulesAreTheContracts(t *testing.T) {
	have := map[string]bool{}
	for _, name := range ruleNames(t) {
		have[name] = true
	}
	for _, name := range strings.Fields(contract) {
		if !have[name] {
			t.Errorf("the rule %s is missing", name)
		}
		delete(have, name)
	}
	for name := range have {
		t.Errorf("the rule %s is not in the contract", name)
	}
}

func TestRulesAreInTheManual(t *testing.T) {
	text, err := os.ReadFile("../../docs/rules.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, line := range regexp.MustCompile("(?m)^\\| (`[^|]*) \\|").FindAllStringSubmatch(string(text), -1) {
		for _, name := range regexp.MustCompile("`([a-z-]+)`").FindAllStringSubmatch(line[1], -1) {
			listed[name[1]] = true
		}
	}
	for _, name := range ruleNames(t) {
		if !listed[name] {
			t.Errorf("the manual does not list %s", name)
		}
		delete(listed, name)
	}
	for name := range listed {
		t.Errorf("the manual lists %s, which is no rule", name)
	}
}

// A rule that no code reports would be a promise that nobody keeps.
func TestEveryRuleIsReported(t *testing.T) {
	var inside, outside strings.Builder // of package extents
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, "extents/problem.go") {
			return err
		}
		b, err := os.ReadFile(path)
		if filepath.Base(filepath.Dir(path)) == "extents" {
			inside.Write(b)
		} else {
			outside.Write(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for constant := range ruleNames(t) {
		if !regexp.MustCompile(`[({\s]`+constant+`[,}\s]`).MatchString(inside.String()) && !strings.Contains(outside.String(), "extents."+constant) {
			t.Errorf("nothing reports %s", constant)
		}
	}
}
