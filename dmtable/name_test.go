package dmtable_test

import (
	"errors"
	"strings"
	"testing"

	. "dmloop/dmtable"
)

func TestMangle(t *testing.T) {
	tests := []struct {
		name, want string // no want is a refusal
	}{
		{"img", "img"},
		{"0aZ#+-.:=@_", "0aZ#+-.:=@_"},
		{"a b", `a\x20b`},
		{`a\b`, `a\x5cb`},
		{"é", `\xc3\xa9`},
		{"\xff", `\xff`},
		{"a,b", `a\x2cb`},
		{"...", "..."},
		{"Control", "Control"},
		{strings.Repeat("n", 127), strings.Repeat("n", 127)},
		{strings.Repeat(" ", 31), strings.Repeat(`\x20`, 31)},
		{"", ""},
		{".", ""},
		{"..", ""},
		{"control", ""},
		{"a/b", ""},
		{`a\x20b c`, ""},
		{`a\x2Fb`, ""},
		{`a\x5cx20b`, ""},
		{"a\x00b", ""},
		{strings.Repeat("n", 128), ""},
		{strings.Repeat(" ", 32), ""},
	}
	for _, test := range tests {
		got, err := Mangle(test.name)
		if test.want == "" {
			var e *NameError
			if !errors.As(err, &e) || e.Name != test.name || got != "" {
				t.Errorf("%q becomes %q, %v", test.name, got, err)
			}
			continue
		}
		if err != nil || got != test.want {
			t.Errorf("%q becomes %q, %v, want %q", test.name, got, err, test.want)
		}
		back, err := Unmangle(got)
		if err != nil || back != test.name {
			t.Errorf("%q goes back to %q, %v", got, back, err)
		}
	}
}

// What is mangled stays so, as in libdevmapper.
func TestMangleTwice(t *testing.T) {
	for _, name := range []string{`a\x20b`, `\x2f`, `\x5c`} {
		if got, err := Mangle(name); err != nil || got != name {
			t.Errorf("%q becomes %q, %v", name, got, err)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"", ".", "..", "control", "a b", "a/b", `a\b`, `a\x2`, `a\x2G`, `a\x2F`, `a\`, "é", "a\x00", strings.Repeat("n", 128)} {
		if CheckName(name) == nil {
			t.Errorf("%q is accepted", name)
		}
		if s, err := Unmangle(name); err == nil {
			t.Errorf("%q unmangles to %q", name, s)
		}
	}
	for _, name := range []string{"a", `a\x20`, `\x2f`, strings.Repeat("n", 127)} {
		if err := CheckName(name); err != nil {
			t.Error(err)
		}
	}
}

func TestCheckUUID(t *testing.T) {
	for _, uuid := range []string{"", "DMLOOP-0123-a", "control", strings.Repeat("u", 128), `LVM-a\x20`} {
		if err := CheckUUID(uuid); err != nil {
			t.Error(err)
		}
	}
	for _, uuid := range []string{strings.Repeat("u", 129), "a b", "a/b", "a\n", "a\x00"} {
		if CheckUUID(uuid) == nil {
			t.Errorf("%q is accepted", uuid)
		}
	}
}

func FuzzMangle(f *testing.F) {
	for _, s := range []string{"img", "a b", `a\x20b`, "é/", "..", "control"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		mangled, err := Mangle(name)
		if err != nil {
			return
		}
		if err := CheckName(mangled); err != nil {
			t.Fatalf("%q becomes %q: %v", name, mangled, err)
		}
		if back, err := Unmangle(mangled); err != nil || back != name && mangled != name {
			t.Fatalf("%q becomes %q and back %q, %v", name, mangled, back, err)
		}
	})
}
