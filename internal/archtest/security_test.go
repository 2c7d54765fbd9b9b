package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSecurityNamesItsTests has each row of SECURITY.md name a test that exists.
func TestSecurityNamesItsTests(t *testing.T) {
	const root = "../.."
	var source strings.Builder
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		source.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "SECURITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	name, rows := regexp.MustCompile("`(Test[A-Za-z0-9]+)`"), 0
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "| ") || strings.Contains(line, "| test |") {
			continue
		}
		rows++
		tests := name.FindAllStringSubmatch(line, -1)
		if len(tests) == 0 {
			t.Errorf("no test shows: %s", line)
		}
		for _, test := range tests {
			if !strings.Contains(source.String(), "\nfunc "+test[1]+"(t *testing.T)") {
				t.Errorf("there is no %s: %s", test[1], line)
			}
		}
	}
	if rows < 10 {
		t.Errorf("%d rows", rows)
	}
}
