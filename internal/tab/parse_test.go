package tab

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	const text = `# comment
  # another one

data   /srv/data.img
my\040disk /srv/a\040b\134c.img 0F1E2D3C-4B5A-6978-8796-A5B4C3D2E1F0 ro,noauto,nofail,pin=immutable,on-change=report,udev-rules=all
part /srv/p.img - offset=1M,sizelimit=512KiB,partscan,no-guard,unsafe,max-extents=7,x-other,x-other.word=1
host UUID=0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0 - shim,x-initrd.attach,x-systemd.device-timeout=1min
lv /dev/vg/lv none shim,_netdev
u /srv/u.img - x-systemd.requires=a.service,x-systemd.after=b@c.target,x-systemd.before=d.mount,x-systemd.wanted-by=e.target,x-systemd.required-by=f.target,x-systemd.requires-mounts-for=/mnt
dash /srv/d.img - -
`
	want := Table{
		{Line: 4, Name: "data", Label: "data", Kind: Image, Source: "/srv/data.img"},
		{Line: 5, Name: `my\x20disk`, Label: "my disk", Kind: Image, Source: `/srv/a b\c.img`, UUID: "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
			ReadOnly: true, NoAuto: true, NoFail: true, Pin: "immutable", OnChange: "report", UdevRules: "all"},
		{Line: 6, Name: "part", Label: "part", Kind: Image, Source: "/srv/p.img", Offset: 1 << 20, SizeLimit: 512 << 10,
			PartScan: true, NoGuard: true, Unsafe: true, MaxExtents: 7},
		{Line: 7, Name: "host", Label: "host", Kind: Shim, Source: "UUID=0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0", Initrd: true,
			Units: UnitOptions{DeviceTimeout: "1min"}},
		{Line: 8, Name: "lv", Label: "lv", Kind: Shim, Source: "/dev/vg/lv", Network: true},
		{Line: 9, Name: "u", Label: "u", Kind: Image, Source: "/srv/u.img", Units: UnitOptions{
			Requires: []string{"a.service"}, After: []string{"b@c.target"}, Before: []string{"d.mount"},
			WantedBy: []string{"e.target"}, RequiredBy: []string{"f.target"}, MountsFor: []string{"/mnt"}}},
		{Line: 10, Name: "dash", Label: "dash", Kind: Image, Source: "/srv/d.img"},
	}
	got, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	if e, ok := got.Find("my disk"); !ok || e.Line != 5 {
		t.Errorf("by label: %v %v", e, ok)
	}
	if e, ok := got.Find(`my\x20disk`); !ok || e.Device() != `/dev/mapper/my\x20disk` {
		t.Errorf("by name: %v %v", e, ok)
	}
	if _, ok := got.Find("nothing"); ok {
		t.Error("found what is not there")
	}
	if tag, value := got[3].Tag(); tag != "UUID" || value != "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0" {
		t.Errorf("tag %q, value %q", tag, value)
	}
}

func TestParseTellsTheLine(t *testing.T) {
	for text, reason := range map[string]string{
		"a":                                 "1 fields",
		"a /b - c d":                        "5 fields",
		"a b.img":                           "not an absolute path",
		"a /b/../c":                         `"/c"`,
		"a /b/":                             `"/b"`,
		"a /dev/sda":                        "add the option shim",
		"a/b /c":                            "slash",
		"control /c":                        "reserved",
		`a /b\09`:                           "octal",
		`a /b\400`:                          "octal",
		`a /b\000`:                          "no field can have",
		`a /b\377`:                          "no field can have",
		`a /b\012c`:                         "no field can have",
		`a /b\015[Service]\015ExecStart=/c`: "no field can have",
		`a /b - x-systemd.requires-mounts-for=/c\015`: "no field can have",
		"a /b 1234":                              "32 hexadecimal digits",
		"a /b - readonly=1":                      "takes no value",
		"a /b - pin":                             "needs a value",
		"a /b - pin=glue":                        "none of auto",
		"a /b - on-change=x":                     "none of error",
		"a /b - offset=1":                        "multiple of 512",
		"a /b - offset=x":                        "not a size",
		"a /b - max-extents=0":                   "not a number",
		"a /b - colour":                          `unknown option "colour"`,
		"a /b - x-systemd.after=x":               "full name of a unit",
		"a /b - x-systemd.device-timeout=%i":     "not a time span",
		"a /b - x-systemd.requires-mounts-for=x": "absolute path",
		"a LABEL=x - shim":                       "not of LABEL=",
		"a UUID= - shim":                         "is not a valid UUID",
		"a UUID=../x - shim":                     "is not a valid UUID",
		"a /srv/x - shim":                        "below /dev",
		"a /dev/../x - shim":                     "below /dev",
		"a /dev/x - shim,ro":                     "no options of images",
		"a /b\na /c":                             "taken by line 3",
	} {
		table, err := Parse("ok /x\n\n" + text)
		var line *LineError
		if !errors.As(err, &line) || line.Line < 3 || !strings.Contains(err.Error(), reason) {
			t.Errorf("%q: %v does not say %q", text, err, reason)
		}
		if len(table) == 0 || table[0].Name != "ok" {
			t.Errorf("%q: the right line was lost: %v", text, table)
		}
	}
}

// Blanks and tabs part fields, and nothing else does: a name may have other characters
// that are not seen.
func TestParseOtherBlanks(t *testing.T) {
	table, err := Parse("my\u00a0disk\t/srv/a\u3000b\u0085.img - nofail\r\nb /srv/\xc2\xa0\n")
	if err != nil || len(table) != 2 || table[0].Label != "my\u00a0disk" || table[0].Source != "/srv/a\u3000b\u0085.img" || !table[0].NoFail || table[1].Source != "/srv/\u00a0" {
		t.Errorf("%+v, %v", table, err)
	}
	for _, bad := range []string{"a\v/b", "a /b\u2028- nofail x"} {
		if table, err := Parse(bad); err == nil {
			t.Errorf("%q: %+v", bad, table)
		}
	}
}

func TestParseLimits(t *testing.T) {
	if _, err := Parse(strings.Repeat("#", maxBytes+1)); err == nil {
		t.Error("too many bytes were read")
	}
	if _, err := Parse(strings.Repeat("\n", maxLines+1)); err == nil {
		t.Error("too many lines were read")
	}
}

func TestFormat(t *testing.T) {
	line := Format("my disk", "/srv/#a\tb", "", "")
	if line != `my\040disk	/srv/#a\011b	-	defaults` {
		t.Errorf("%q", line)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("data /srv/data.img - nofail,pin=auto\nhost UUID=12-34 - shim\n")
	f.Add("my\u00a0disk /srv/a\u3000b - nofail\r\n")
	f.Add(`my\040disk /a\134b 0f1e2d3c4b5a69788796a5b4c3d2e1f0 x-systemd.after=a.service`)
	f.Fuzz(func(t *testing.T, text string) {
		table, _ := Parse(text)
		for _, e := range table {
			if e.Kind == Shim {
				continue
			}
			line := Format(e.Label, e.Source, e.UUID, "")
			again, err := Parse(line)
			if err != nil || len(again) != 1 || again[0].Name != e.Name || again[0].Source != e.Source || again[0].UUID != e.UUID {
				t.Fatalf("%q was written as %q and read as %+v, %v", text, line, again, err)
			}
		}
	})
}
