package hostfiles

import (
	"flag"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"dmloop/internal/tab"
)

var update = flag.Bool("update", false, "write what the generator renders into the golden files")

// TestGenerate compares with testdata/*.golden: the parts tab and fstab are the input,
// initrd and hosts are there when wanted, and want is the folder as text.
func TestGenerate(t *testing.T) {
	cases, err := filepath.Glob("testdata/*.golden")
	if err != nil || len(cases) == 0 {
		t.Fatal(cases, err)
	}
	for _, file := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".golden"), func(t *testing.T) {
			all, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			question, want, found := strings.Cut(string(all), "-- want --\n")
			if !found {
				t.Fatal("no want")
			}
			in := input(t, question)
			dir := t.TempDir()
			for range 2 { // the second time nothing is left to do
				if err := Generate(in).WriteTo(dir); err != nil {
					t.Fatal(err)
				}
			}
			got := listing(t, dir)
			if *update {
				if err := os.WriteFile(file, []byte(question+"-- want --\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// input reads the parts of a golden file, each after a line with its name.
func input(t *testing.T, text string) Input {
	t.Helper()
	in := Input{TabPath: "/etc/dmlooptab"}
	var err error
	for _, part := range strings.Split("\n"+text, "\n-- ")[1:] {
		name, body, _ := strings.Cut(part, " --\n")
		switch name {
		case "tab":
			if in.Table, err = tab.Parse(body); err != nil {
				t.Fatal(err)
			}
		case "fstab":
			in.Mounts = ParseFstab(body)
		case "initrd":
			in.Initrd = true
		case "hosts":
			in.Hosts = []BootHost{
				{Name: "root", Device: "/dev/mapper/host", Type: "ext4", Point: "/run/dmloop/host/root", Image: "/root.img", Mounted: true},
				{Name: "a-b", Device: "/dev/mapper/host2", Type: "xfs", Point: "/run/dmloop/host/a-b", Image: "/dir/a b.img"},
			}
		default:
			t.Fatalf("unknown part %q", name)
		}
	}
	return in
}

// listing shows a folder: links with their target, files with their lines indented.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if d.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			b.WriteString(name + " -> " + target + "\n")
			return err
		}
		text, err := os.ReadFile(path)
		b.WriteString(name + ":\n")
		for line := range strings.Lines(string(text)) {
			b.WriteString("\t" + line)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestGenerateNothing(t *testing.T) {
	if out := Generate(Input{}); len(out.Files)+len(out.Links) > 0 {
		t.Errorf("%+v", out)
	}
}

// TestGenerateStaysInItsFolder: a line's text never becomes a path or another
// setting of a unit.
func TestGenerateStaysInItsFolder(t *testing.T) {
	table, err := tab.Parse(`..x /srv/%n"\134\040x - nofail` + "\n" + `a%i%%b /x` + "\n" + `.hidden /x`)
	if err != nil {
		t.Fatal(err)
	}
	out := Generate(Input{Table: table, TabPath: "/etc/dmlooptab"})
	for _, name := range slices.Concat(slices.Collect(maps.Keys(out.Files)), slices.Collect(maps.Keys(out.Links))) {
		if !filepath.IsLocal(name) || strings.Count(name, "/") > 1 {
			t.Errorf("%q", name)
		}
	}
	var all strings.Builder
	for _, text := range out.Files {
		all.WriteString(text)
	}
	if !strings.Contains(all.String(), `RequiresMountsFor="/srv/%%n\"\\ x"`) {
		t.Errorf("not quoted:\n%s", all.String())
	}
}

func TestMountOf(t *testing.T) {
	mounts := ParseFstab("UUID=1 / ext4\n# x\nUUID=2 /srv ext4\nnone swap swap\n\n/dev/mapper/a\\040b /srv/deep\\040er xfs\nUUID=3 /srv\n")
	for path, want := range map[string]string{
		"/x": "UUID=1", "/srv": "UUID=3", "/srv/a.img": "UUID=3", "/srvx": "UUID=1", "/srv/deep er/a": "/dev/mapper/a b",
	} {
		if m, ok := mountOf(mounts, path); !ok || m.Source != want {
			t.Errorf("%s: %+v, %v; want %s", path, m, ok, want)
		}
	}
	if m, ok := mountOf(nil, "/x"); ok {
		t.Errorf("%+v", m)
	}
}

func TestParseFstab(t *testing.T) {
	got := ParseFstab("# /dev/sda1 /no ext4\n\t#x /no\nLABEL=my\\040disk\t/srv/my\\040images  xfs\n/dev/a\u00a0b /srv/\u3000/ ext4\n/dev/c none swap sw\n/dev/d /srv/\\134040 ext4 ro,noexec\n")
	want := []Mount{{"LABEL=my disk", "/srv/my images", ""}, {"/dev/a\u00a0b", "/srv/\u3000", ""}, {"/dev/d", `/srv/\040`, "ro,noexec"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// FuzzParseFstab writes a line as libmount does, which escapes what the kernel escapes
// in mountinfo, and reads it again, between lines that are nobody's.
func FuzzParseFstab(f *testing.F) {
	for _, name := range []string{"srv/my images", "a\u00a0b", "\u3000", "a\tb\nc", `\040`, "#", "\xa0\xff\r"} {
		f.Add(name, name)
	}
	escape := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)
	f.Fuzz(func(t *testing.T, source, point string) {
		if source == "" || source[0] == '#' || point == "" {
			return
		}
		want := []Mount{{source, path.Clean("/" + point), "defaults"}}
		text := "# " + escape.Replace(source) + " /x ext4\n\n \t" + escape.Replace(source) + "\t/" + escape.Replace(point) + " ext4 defaults 0 2\n"
		if got := ParseFstab(text); !reflect.DeepEqual(got, want) {
			t.Errorf("%q is read as %q, want %q", text, got, want)
		}
	})
}
