package backing

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/image"

	"golang.org/x/sys/unix"
)

// mappableDir returns an empty directory on a file system that images can live on.
// Where the tests run on another one, it checks that Create says so and reports
// false: the guest tests, which bring their file systems along, must do then.
func mappableDir(t *testing.T) (string, bool) {
	t.Helper()
	dir := t.TempDir()
	probe := filepath.Join(dir, "probe")
	if err := os.WriteFile(probe, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := image.Open(probe)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	facts, err := img.Facts()
	if err != nil {
		t.Fatal(err)
	}
	if facts.Kind() == "" {
		err := Create(context.Background(), filepath.Join(dir, "image"), 1<<20, Options{})
		if !hasProblem(err, extents.UnsupportedFS) {
			t.Errorf("Create on %s: %v", facts.Filesystem, err)
		}
		return "", false
	}
	if err := os.Remove(probe); err != nil {
		t.Fatal(err)
	}
	return dir, true
}

func hasProblem(err error, rule extents.Rule) bool {
	var p *extents.Refusal
	return errors.As(err, &p) && slices.ContainsFunc(p.Problems, func(p extents.Problem) bool { return p.Rule == rule })
}

// isEmpty fails the test when dir holds anything.
func isEmpty(t *testing.T, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestCreate(t *testing.T) {
	dir, ok := mappableDir(t)
	if !ok {
		return
	}
	path := filepath.Join(dir, "an image")
	const size = 3*chunkSize + 64<<10
	var shown []extents.Bytes
	err := Create(context.Background(), path, size, Options{Progress: func(done, total extents.Bytes) {
		shown = append(shown, done)
		if total != size {
			t.Errorf("total is %d", total)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil || len(data) != size || bytes.Count(data, []byte{0}) != size {
		t.Errorf("%d bytes, not all zero, %v", len(data), err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode is %v, %v", info.Mode(), err)
	}
	if !slices.IsSorted(shown) || shown[0] != 0 || shown[len(shown)-1] != size {
		t.Errorf("progress was %v", shown)
	}
	report, err := provisionAt(context.Background(), path, Options{})
	if err != nil || report != (Report{}) {
		t.Errorf("a new image needs no repair, but: %+v, %v", report, err)
	}
}

func TestCreateRefuses(t *testing.T) {
	dir, ok := mappableDir(t)
	if !ok {
		return
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	tests := []struct {
		name  string
		path  string
		size  extents.Bytes
		wants func(err error) bool
	}{
		{"size 0", in("a"), 0, func(err error) bool { return hasProblem(err, extents.Empty) }},
		{"negative size", in("a"), -4096, func(err error) bool { return hasProblem(err, extents.Empty) }},
		{"one sector and a byte", in("a"), 513, func(err error) bool { return hasProblem(err, extents.SizeUnaligned) }},
		{"1000 TiB and 432 sectors", in("a"), 1099511627997184, isNoSpace},
		{"largest number", in("a"), 1<<63 - 65536, isNoSpace},
		{"no directory", in("no/a"), 4096, func(err error) bool { return errors.Is(err, fs.ErrNotExist) }},
		{"a slash at the end", dir + "/", 4096, func(err error) bool { return err != nil }},
		{"a new name with a slash at the end", dir + "/a/", 4096, func(err error) bool { return err != nil }},
		{"dot", dir + "/.", 4096, func(err error) bool { return err != nil }},
		{"long name", in(strings.Repeat("x", 256)), 4096, func(err error) bool { return errors.Is(err, unix.ENAMETOOLONG) }},
		{"NUL", in("a\x00b"), 4096, func(err error) bool { return errors.Is(err, unix.EINVAL) }},
		{"empty name", "", 4096, func(err error) bool { return err != nil }},
	}
	for _, tt := range tests {
		if err := Create(context.Background(), tt.path, tt.size, Options{}); !tt.wants(err) {
			t.Errorf("%s: %v", tt.name, err)
		}
		isEmpty(t, dir)
	}
}

func isNoSpace(err error) bool {
	var p *NoSpaceError
	return errors.As(err, &p) && errors.Is(err, unix.ENOSPC) && p.Needed > p.Available && p.Available > 0
}

func TestCreateReplacesNothing(t *testing.T) {
	dir, ok := mappableDir(t)
	if !ok {
		return
	}
	path := filepath.Join(dir, "there")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "dangling")
	if err := os.Symlink("nowhere", link); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, link, dir} {
		if err := Create(context.Background(), p, 1<<20, Options{}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: %v", p, err)
		}
	}
	// Somebody makes the file while we are at work.
	late := filepath.Join(dir, "late")
	err := Create(context.Background(), late, 1<<20, Options{Progress: func(done, total extents.Bytes) {
		if done == total {
			if err := os.WriteFile(late, []byte("precious"), 0o600); err != nil {
				t.Error(err)
			}
		}
	}})
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("made meanwhile: %v", err)
	}
	for _, p := range []string{path, late} {
		if data, err := os.ReadFile(p); string(data) != "precious" {
			t.Errorf("%s was replaced: %q, %v", p, data, err)
		}
	}
}

func TestCreateCancelled(t *testing.T) {
	dir, ok := mappableDir(t)
	if !ok {
		return
	}
	for _, at := range []extents.Bytes{0, chunkSize, 5 * chunkSize} {
		ctx, cancel := context.WithCancelCause(context.Background())
		reason := errors.New("Ctrl-C")
		err := Create(ctx, filepath.Join(dir, "a"), 8*chunkSize, Options{Progress: func(done, _ extents.Bytes) {
			if done >= at {
				cancel(reason)
			}
		}})
		if !errors.Is(err, reason) {
			t.Errorf("cancelled at %d: %v", at, err)
		}
		isEmpty(t, dir)
	}
}
