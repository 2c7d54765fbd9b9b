package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("before\n" + begin + "old\n" + end + "after\n")
	output := `=== RUN   TestMatrixExt4
MATRIX|uml|ext4|kernel|running|write|refused: EPERM|untouched|-|0
MATRIX|new|ext4|kernel|running|write|done|torn down|12ms|3
MATRIX|new|ext4|kernel|running|read|done|untouched|-|0
LATENCY|uml|image truncated|200|1ms|2ms|3ms
`
	if err := run(path, strings.NewReader(output)); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "before\n" + begin + `### ext4

3 cells: 1 refused, 1 allowed and harmless, 1 torn down. Blocks of others were written in 1 of them, 1 of these with a pinned image and a running guard.

| attack | grade | guard | uml | new |
|---|---|---|---|---|
| write | kernel | running | refused: EPERM | done; torn down after 12ms; **3 blocks of others written** |
| read | kernel | running |  | allowed, harmless |

### From an event to the error table

| kernel | change | trials | p50 | p99 | longest |
|---|---|---|---|---|---|
| uml | image truncated | 200 | 1ms | 2ms | 3ms |

` + end + "after\n"
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if err := run(path, strings.NewReader("nothing")); err == nil {
		t.Error("no results are no error")
	}
	write("no marks")
	if err := run(path, strings.NewReader(output)); err == nil {
		t.Error("a document without marks is no error")
	}
}
