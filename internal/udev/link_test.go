package udev

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/dmtable"
)

func TestUnlink(t *testing.T) {
	tests := []struct {
		name  string
		stand func(t *testing.T, h Host, path string) // what stands at path
		gone  bool
		fails bool
	}{
		{"nothing", func(*testing.T, Host, string) {}, true, false},
		{"stale link", link("../dm-7"), true, false},
		{"absolute link", link("/dev/dm-7"), true, false},
		{"link to a live device of another name", func(t *testing.T, h Host, path string) {
			write(t, filepath.Join(h.Sys, "block", "dm-7", "dm", "name"), "other\n")
			link("../dm-7")(t, h, path)
		}, true, false},
		{"link to a live device of this name", func(t *testing.T, h Host, path string) {
			write(t, filepath.Join(h.Sys, "block", "dm-7", "dm", "name"), "img\n")
			link("../dm-7")(t, h, path)
		}, false, false},
		{"foreign link", link("/etc/passwd"), false, true},
		{"link out of the folder", link("../dm-7/../sda"), false, true},
		{"regular file", func(t *testing.T, _ Host, path string) { write(t, path, "mine") }, false, true},
		{"folder", func(t *testing.T, _ Host, path string) { write(t, filepath.Join(path, "x"), "mine") }, false, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := running(t)
			path := filepath.Join(h.Dev, "mapper", "img")
			test.stand(t, h, path)
			err := h.Unlink("img")
			_, there := os.Lstat(path)
			if (err != nil) != test.fails || errors.Is(there, fs.ErrNotExist) != test.gone {
				t.Errorf("%v; afterwards: %v", err, there)
			}
		})
	}
	for _, name := range []string{"", "..", "../sda", "control", strings.Repeat("n", 128)} {
		if err := running(t).Unlink(name); err == nil {
			t.Errorf("%q is accepted", name)
		}
		if err := running(t).EnsureLink(name, dmtable.Device{Major: 253}); err == nil {
			t.Errorf("%q is accepted", name)
		}
	}
}

func link(target string) func(t *testing.T, h Host, path string) {
	return func(t *testing.T, _ Host, path string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
}
