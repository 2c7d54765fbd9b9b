package kernlist

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// The characters that the kernel escapes, by list: seq_file_path of swap_show in
// mm/swapfile.c, show_path and mangle in fs/proc_namespace.c, seq_show_option in
// include/linux/seq_file.h.
const (
	escapedInPaths   = " \t\n\\"
	escapedInSources = " \t\n\\#"
	escapedInOptions = ",= \t\n\\"
)

// kernelEscape is mangle_path of fs/seq_file.c, written from its description: each
// of the given bytes becomes a backslash and three octal digits.
func kernelEscape(s, chars string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if strings.IndexByte(chars, c) >= 0 {
			fmt.Fprintf(&b, `\%o%o%o`, c>>6, c>>3&7, c&7)
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// odd are names that are hard to read: other kinds of blanks, ends of lines that are
// none, bytes that are no text, and what looks like an escape or a mark of the kernel.
var odd = []string{
	"plain", "a b", "a\tb", "a\nb", `a\b`, `a\040b`, `a\\040b`, "a\u00a0b", "a\u0085b", "a\u3000b", "a\u2028b", "a\rb", "a\vb", "a\fb", "b\r",
	"x (deleted)", " ", "\u00a0", "#x", "-", "\xa0\x85\xff", `\`, `\1`, `\12`, `\400`, `\089`, "a=b,c", "\u00a0 - ext4 /dev/sda rw",
}

func TestUnescapeUndoesTheKernelsEscaping(t *testing.T) {
	for _, name := range odd {
		for _, chars := range []string{escapedInPaths, escapedInSources, escapedInOptions} {
			escaped := kernelEscape(name, chars)
			if got := Unescape(escaped); got != name {
				t.Errorf("%q escaped as %q is read as %q", name, escaped, got)
			}
			if f := Split("first " + escaped + "\tlast"); len(f) != 3 || f[1] != escaped {
				t.Errorf("%q is split into %q", escaped, f)
			}
			if !EscapesOnly(escaped) {
				t.Errorf("%q has a backslash of its own", escaped)
			}
		}
	}
	for _, s := range []string{`\`, `\1`, `\12`, `\400`, `\08`, `a\9`, `\12\134`} {
		if EscapesOnly(s) {
			t.Errorf("%q: every backslash is an escape", s)
		}
	}
}

// line writes a mount as the kernel does.
func line(m Mount, tags ...string) string {
	options := make([]string, len(m.SuperOptions))
	for i, o := range m.SuperOptions {
		options[i] = kernelEscape(o, " \t\n")
	}
	return strings.Join(slices.Concat(
		[]string{fmt.Sprint(m.ID), "1", fmt.Sprintf("%d:%d", m.Major, m.Minor), kernelEscape(m.Root, escapedInPaths), kernelEscape(m.Point, escapedInPaths), strings.Join(m.Options, ",")},
		tags, []string{"-", kernelEscape(m.Type, escapedInSources), kernelEscape(m.Source, escapedInSources), strings.Join(options, ",")}), " ") + "\n"
}

func TestParseMounts(t *testing.T) {
	var want []Mount
	text := ""
	for i, name := range append(odd, "", strings.Repeat("long", 100_000)) {
		m := Mount{ID: uint64(i), Major: 259, Minor: uint32(i), Root: "/" + name, Point: "/mnt/" + name, Options: []string{"rw", "noatime"},
			Type: "fuse." + name, Source: name, SuperOptions: []string{"rw", "errors=continue"}}
		want = append(want, m)
		text += line(m, [][]string{nil, {"shared:1"}, {"shared:1", "master:2", "propagate_from:3"}}[i%3]...)
	}
	got, err := ParseMounts(text)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n%+v\nwant\n%+v", err, got, want)
	}
	got, err = ParseMounts("1 2 0:3 / /m rw - cifs //server/share rw,unc=//server/my share,vers=1\n")
	if err != nil || len(got) != 1 || !slices.Contains(got[0].SuperOptions, "unc=//server/my share") {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"\n", "1 2 3:4 / / rw - ext4 src\n", "1 2 3:4 / / rw shared:1 ext4 src rw\n", "x 2 3:4 / / rw - ext4 src rw\n",
		"1 2 34 / / rw - ext4 src rw\n", "1 2 3: / / rw - ext4 src rw\n", "1 2 -3:4 / / rw - ext4 src rw\n"} {
		if got, err := ParseMounts(bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func FuzzMounts(f *testing.F) {
	for i, name := range odd {
		f.Add(name, odd[(i+3)%len(odd)], odd[(i+7)%len(odd)])
	}
	f.Fuzz(func(t *testing.T, point, source, kind string) {
		want := Mount{ID: 7, Major: 8, Minor: 1, Root: "/", Point: "/" + point, Options: []string{"rw"}, Type: kind, Source: source, SuperOptions: []string{"rw"}}
		text := line(Mount{Type: "tmpfs", Source: source, Point: point}) + line(want, "shared:4")
		got, err := ParseMounts(text)
		if err != nil || len(got) != 2 || !reflect.DeepEqual(got[1], want) {
			t.Errorf("%q is read as %+v, %v", text, got, err)
		}
	})
}

func FuzzFields(f *testing.F) {
	for _, name := range odd {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if name == "" {
			return
		}
		escaped := kernelEscape(name, escapedInPaths)
		if got := Split(" 1\t" + escaped + "  file "); len(got) != 3 || Unescape(got[1]) != name {
			t.Errorf("%q is read as %q", name, got)
		}
		n := 0
		for l := range Lines(escaped + "\n" + escaped + "\n") {
			n++
			if Unescape(l) != name {
				t.Errorf("line %q of %q", l, name)
			}
		}
		if n != 2 {
			t.Errorf("%q is %d lines", name, n)
		}
	})
}
