package hostfiles

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var contents = regexp.MustCompile(`src: (\S+), dst: (\S+?)[,}]`)

// packaged returns the files of all packages, source to target, as nfpm's
// descriptions list them.
func packaged(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, name := range []string{"dmloop", "dmloop-initramfs"} {
		text, err := os.ReadFile(filepath.Join("packages", name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range contents.FindAllStringSubmatch(string(text), -1) {
			found[m[2]] = m[1]
		}
	}
	return found
}

func TestEveryPackagedFileIsDocumented(t *testing.T) {
	docs, err := os.ReadFile("../../docs/files.md")
	if err != nil {
		t.Fatal(err)
	}
	for target, source := range packaged(t) {
		if !strings.Contains(string(docs), "`"+target+"`") {
			t.Errorf("docs/files.md does not tell of %s", target)
		}
		if strings.HasPrefix(source, "internal/") {
			if _, err := os.Stat(filepath.Join("../..", source)); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestEveryHostFileIsPackaged(t *testing.T) {
	sources := map[string]bool{}
	for _, source := range packaged(t) {
		sources[source] = true
	}
	err := fs.WalkDir(Files, ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !sources["internal/hostfiles/"+path] {
			t.Errorf("%s is in no package", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
