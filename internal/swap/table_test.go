package swap

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"
)

const titles = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"

func TestParseTable(t *testing.T) {
	got, err := ParseTable(titles +
		"/srv/img\\040one                         file\t\t4\t\t0\t\t-2\n" +
		"/dev/dm-3                               partition\t8388604\t\t1024\t\t-1\n" +
		"/a\\011b\\012c\\134d\\0400\t\t\tfile\t\t4\t\t4\t\t32767\n" +
		"/gone\\040(deleted)                      file\t\t4\t\t0\t\t-3\n" +
		"/no\\9escape\\                           file\t\t4\t\t0\t\t-4\n")
	want := []Entry{
		{Path: "/srv/img one", Type: "file", Size: 4096, Priority: -2},
		{Path: "/dev/dm-3", Type: "partition", Size: 8388604 << 10, Used: 1 << 20, Priority: -1},
		{Path: "/a\tb\nc\\d 0", Type: "file", Size: 4096, Used: 4096, Priority: 32767},
		{Path: "/gone (deleted)", Type: "file", Size: 4096, Priority: -3},
		{Path: "/no\\9escape\\", Type: "file", Size: 4096, Priority: -4},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v\nwant %+v", got, err, want)
	}
	for _, bad := range []string{"/a file 4 0\n", "/a file x 0 -2\n", "/a file 4 0 x\n", "\n", "/a b file 4 0 -2\n", "/a file 99999999999999999 0 -2\n"} {
		if got, err := ParseTable(titles + bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
	if got, err := ParseTable(titles); err != nil || got != nil {
		t.Errorf("no swap: %v, %v", got, err)
	}
}

// FuzzParseTable writes rows as the kernel does (swap_show in mm/swapfile.c) and reads
// them again, whatever a file is called.
func FuzzParseTable(f *testing.F) {
	for _, name := range []string{"a b", "a\u00a0b", "a\u0085", "\u3000", "a\tb\nc\\d", `\040`, "x (deleted)", "\xa0\xff", "\r", strings.Repeat("long", 1000)} {
		f.Add(name, name+"2")
	}
	escape := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)
	f.Fuzz(func(t *testing.T, a, b string) {
		text := titles
		for _, name := range []string{a, b} {
			path := escape.Replace("/" + name)
			text += path + strings.Repeat(" ", max(40-len(path), 1)) + "file\t\t4\t\t0\t\t-2\n"
		}
		got, err := ParseTable(text)
		want := []Entry{{Path: "/" + a, Type: "file", Size: 4096, Priority: -2}, {Path: "/" + b, Type: "file", Size: 4096, Priority: -2}}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	})
}

// The end of a name is not the kernel's mark, and a symbolic link leads to nobody's file.
func TestEntryStat(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	inode := func(path string) uint64 {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	for _, name := range []string{"victim", "x (deleted)", "again"} {
		if err := os.WriteFile(at(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"x": "victim", "y": "victim", "folder": "."} {
		if err := os.Symlink(target, at(name)); err != nil {
			t.Fatal(err)
		}
	}
	for listed, want := range map[string]string{
		"victim": "victim", "x (deleted)": "x (deleted)", "again (deleted)": "again",
		"y (deleted)": "", "x": "", "folder/victim": "", "gone": "", "gone (deleted)": "",
	} {
		st, found := Entry{Path: at(listed)}.Stat()
		if found != (want != "") || found && st.Ino != inode(at(want)) {
			t.Errorf("%s: %v, inode %d, want that of %q", listed, found, st.Ino, want)
		}
	}
}

func TestHibernation(t *testing.T) {
	for _, c := range []struct {
		cmdline, resume string
		want            Hibernation
	}{
		{"root=/dev/sda1 quiet\n", "0:0\n", Hibernation{}},
		{"root=/dev/sda1 quiet\n", "-", Hibernation{}},
		{"root=/dev/sda1 resume=UUID=1-2 quiet\n", "0:0\n", Hibernation{true, "resume=UUID=1-2 on the kernel command line"}},
		{"noresume resume_offset=12\n", "0:0\n", Hibernation{}},
		{"quiet\n", "8:2\n", Hibernation{true, "/sys/power/resume is 8:2"}},
	} {
		root := fstest.MapFS{"proc/cmdline": {Data: []byte(c.cmdline)}}
		if c.resume != "-" {
			root["sys/power/resume"] = &fstest.MapFile{Data: []byte(c.resume)}
		}
		if got, err := hibernation(root); err != nil || got != c.want {
			t.Errorf("%q, %q: %+v, %v", c.cmdline, c.resume, got, err)
		}
	}
	if _, err := hibernation(fstest.MapFS{}); err == nil {
		t.Error("no command line: no error")
	}
}

func TestMessage(t *testing.T) {
	for in, want := range map[string]string{
		"3,1234,56,-;swapon: file has unallocated extents\n": "swapon: file has unallocated extents",
		"4,1,2,-;EXT4-fs; odd\n SUBSYSTEM=block\n":           "EXT4-fs; odd",
		"rubbish": "",
	} {
		if got := message(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}
