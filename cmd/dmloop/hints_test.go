package main

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/advice"
)

// oddPaths are names that a hint must bring through as one word of a shell.
var oddPaths = map[string]string{
	"/srv/a.img":        "/srv/a.img",
	"/srv/IMAGE.img":    "/srv/IMAGE.img",
	"/srv/{image}.img":  "'/srv/{image}.img'",
	"/srv/{name} {low}": "'/srv/{name} {low}'",
	"/srv/a b.img":      "'/srv/a b.img'",
	"it's":              `'it'\''s'`,
	"$(reboot)":         "'$(reboot)'",
	"":                  "''",
	"-rf":               "./-rf",
	"a\nb":              `$'a\x0ab'`,
	"a\nb'c\\d":         `$'a\x0ab\'c\\d'`,
	"a\xffb":            `$'a\xffb'`,
	"a\u202eb":          `$'a\u202eb'`,
}

func TestShellWord(t *testing.T) {
	for path, want := range oddPaths {
		if got := shellWord(path); got != want || printable(got) != got {
			t.Errorf("%q: %s, want %s", path, got, want)
		}
	}
}

// Whatever an image is called, each hint names it as often as its words ask for, and
// nothing of a path or a name is taken for a place of the words.
func TestHintsOfOddPaths(t *testing.T) {
	const name, low, high = "{image}'s", 4711, 4712
	places := func(words string) string {
		for _, p := range []string{"{image}", "{name}", "{text}", "{low}", "{high}"} {
			words = strings.ReplaceAll(words, p, "")
		}
		return words
	}
	for path, word := range oddPaths {
		check := func(of, words, got string) {
			t.Helper()
			want := strings.NewReplacer("{image}", word, "{name}", `'{image}'\''s'`, "{text}", name, "{low}", "4711", "{high}", "4712").Replace(words)
			if got != want || words == "" || strings.ContainsAny(places(words), "{}") {
				t.Errorf("%s of %q:\n%s\nwant\n%s", of, path, got, want)
			}
		}
		for r, words := range hints() {
			check(string(r.Way), words, hint(path, r.Of(name).At(low, high)))
		}
		for rule, words := range usualHints() {
			if strings.Contains(words, "{name}") || strings.Contains(words, "{low}") {
				t.Errorf("%s: what is usual for a rule knows the image only: %s", rule, words)
			}
			check(string(rule), words, problemHint(path, extents.Problem{Rule: rule}))
		}
	}
}

// ownWays are the ways out of rules that have no usual one.
var ownWays = map[extents.Rule][]extents.Remedy{
	extents.Empty:             {advice.MakeImage},
	extents.SizeUnaligned:     {advice.SizeTo, advice.OffsetBetween, advice.LimitBetween, advice.MapPartitions, advice.LeaveFooterOut},
	extents.UnsupportedFS:     {advice.MoveImage, advice.MountWithoutOption},
	extents.DataJournal:       {advice.ClearJournalFlag, advice.MountWithoutJournalling, advice.ClearJournalDefault},
	extents.Overlap:           {advice.UnmapOther, advice.RemoveDevice},
	extents.Unsealed:          {advice.Seal},
	extents.Unpinnable:        {advice.RootsAlone, advice.SealOrUnsafe, advice.RemountWritable, advice.MoveImage},
	extents.MountedDirectly:   {advice.MountThroughShim, advice.PersistShim},
	extents.UnresolvableStack: {advice.ShimOnTop, advice.ResumeChanged},
}

// Every rule has a usual way out, or those who judge it know a better one each time.
func TestEveryRuleHasAHint(t *testing.T) {
	for _, r := range extents.Rules() {
		if (usualHints()[r.Rule] == "") != (len(ownWays[r.Rule]) > 0) {
			t.Errorf("%s: usual is %q, of its own %v", r.Rule, usualHints()[r.Rule], ownWays[r.Rule])
		}
	}
}

var update = flag.Bool("update", false, "write the generated part of docs/rules.md")

// The table of docs/rules.md is made of what extents and the hints say.
func TestRulesPage(t *testing.T) {
	const page, begin, end = "../../docs/rules.md", "| rule | refuses when | what to do |\n|---|---|---|\n", "\nThe content of an image"
	var table strings.Builder
	general := strings.NewReplacer("{image}", "IMAGE", "{name}", "NAME", "{text}", "NAME", "{low}", "N", "{high}", "N", "|", `\|`)
	for _, r := range extents.Rules() {
		words := []string{usualHints()[r.Rule]}
		if ways := ownWays[r.Rule]; len(ways) > 0 {
			words = nil
			for _, w := range ways {
				words = append(words, hints()[w])
			}
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s |\n", r.Rule, r.Meaning, general.Replace(strings.Join(words, "<br>")))
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatal("the page has no table of rules")
	}
	want := before + begin + table.String() + end + after
	if *update {
		err = os.WriteFile(page, []byte(want), 0o644)
	}
	if err != nil || want != string(text) && !*update {
		t.Errorf("docs/rules.md is not what the rules say (%v): go test ./cmd/dmloop -run TestRulesPage -update", err)
	}
}

// Package advice and the words for it are the same list.
func TestEveryAdviceHasWords(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../../internal/advice/advice.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := 0
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, is := n.(*ast.ValueSpec); is {
			declared += len(spec.Names)
		}
		return true
	})
	if declared < 100 || declared != len(hints()) {
		t.Errorf("%d ways are declared, %d have words", declared, len(hints()))
	}
	if hints()[advice.Seal] != "dmloop seal {image}" {
		t.Errorf("%q", hints()[advice.Seal])
	}
}
