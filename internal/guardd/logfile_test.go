package guardd

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/internal/guardrpc"
)

// openLog opens the log of a detached guard in a new folder, as the command does that
// starts one.
func openLog(t *testing.T) (f *os.File, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), guardrpc.LogName)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, path
}

func TestLogOfADetachedGuardStaysSmall(t *testing.T) {
	f, path := openLog(t)
	if _, err := io.WriteString(f, "an earlier guard's\n"); err != nil {
		t.Fatal(err)
	}
	w := LogWriter(filepath.Dir(path), f)
	line := []byte(strings.Repeat("x", 99) + "\n")
	for range 5 * logSize / len(line) {
		if n, err := w.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	if _, err := w.Write([]byte("the last\n")); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 2 {
		t.Errorf("%v, %v; not one log and one older", entries, err)
	}
	for _, name := range []string{path, path + guardrpc.OldLog} {
		info, err := os.Stat(name)
		if err != nil || info.Size() > logSize || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil || !bytes.HasSuffix(text, []byte("\nthe last\n")) {
		t.Errorf("the log ends in %q, %v", text[max(0, len(text)-50):], err)
	}
}

// A log whose name is gone takes no more room than one that has it.
func TestLogThatCannotBeRenewed(t *testing.T) {
	f, path := openLog(t)
	w := LogWriter(filepath.Dir(path), f)
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	line := []byte(strings.Repeat("x", 99) + "\n")
	for range 3 * logSize / len(line) {
		if _, err := w.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := f.Stat(); err != nil || info.Size() > logSize {
		t.Errorf("%v, %v", info, err)
	}
}

func TestOtherLogsAreLeftAlone(t *testing.T) {
	f, path := openLog(t)
	if w := LogWriter(t.TempDir(), f); w != io.Writer(f) {
		t.Errorf("%T for another folder's guard", w)
	}
	var text bytes.Buffer
	if w := LogWriter(filepath.Dir(path), &text); w != io.Writer(&text) {
		t.Errorf("%T for what is no file", w)
	}
}
