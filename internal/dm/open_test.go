package dm

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOpenRefuses checks what open makes of folders that are not the kernel's.
func TestOpenRefuses(t *testing.T) {
	write := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link := filepath.Join(t.TempDir(), "control")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "mapper", "control")
	tests := []struct {
		name, control, misc string
		want                error  // or
		text                string // in the message
	}{
		{"no device-mapper", missing, write("misc", " 60 psaux\n"), ErrNoDeviceMapper, ""},
		{"bad number", missing, write("misc", "236x device-mapper\n"), nil, "236x device-mapper"},
		{"regular file", write("control", ""), write("misc", "236 device-mapper\n"), nil, "not the device-mapper control device"},
		{"symbolic link", link, write("misc", "236 device-mapper\n"), nil, "not the device-mapper control device"},
		{"another device", "/dev/null", write("misc", "236 device-mapper\n"), nil, "not the device-mapper control device"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, err := open(test.control, test.misc)
			var e *Error
			if !errors.As(err, &e) || e.Op != "open" || c != nil {
				t.Fatalf("got %v, %v", c, err)
			}
			if test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := os.Lstat(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a node was made: %v", err)
	}
}
