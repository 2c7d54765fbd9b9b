package dmtable_test

import (
	"reflect"
	"strings"
	"testing"

	. "dmloop/dmtable"
)

func TestConcise(t *testing.T) {
	linear, err := ParseText("0 8 linear 8:1 0\n8 8 linear 8:1 100\n")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		devices []ConciseDevice
		want    string
	}{
		{"plain", []ConciseDevice{{Name: "img", Table: linear}}, "img,,,rw,0 8 linear 8:1 0,8 8 linear 8:1 100"},
		{"all fields", []ConciseDevice{{Name: "img", UUID: "DMLOOP-1", Minor: 3, HasMinor: true, ReadOnly: true, Table: linear[:1]}},
			"img,DMLOOP-1,3,ro,0 8 linear 8:1 0"},
		{"minor 0", []ConciseDevice{{Name: "img", HasMinor: true, Table: linear[:1]}}, "img,,0,rw,0 8 linear 8:1 0"},
		{"several", []ConciseDevice{{Name: "a", Table: linear[:1]}, {Name: "b", Table: Table{{0, 8, "error", ""}}}},
			"a,,,rw,0 8 linear 8:1 0;b,,,rw,0 8 error "},
		{"quoted", []ConciseDevice{{Name: `a\x20b`, UUID: `u\x2c`, Table: Table{{0, 8, "t,;", `a,b;c\d`}}}},
			`a\\x20b,u\\x2c,,rw,0 8 t\,\; a\,b\;c\\d`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := FormatConcise(test.devices...)
			if err != nil || got != test.want {
				t.Fatalf("got %q, %v, want %q", got, err, test.want)
			}
			for _, end := range []string{"", ";", ";\n"} {
				back, err := ParseConcise(got + end)
				if err != nil || !reflect.DeepEqual(back, test.devices) {
					t.Errorf("%q is read as %+v, %v", got+end, back, err)
				}
			}
		})
	}
}

func TestParseConciseBlanks(t *testing.T) {
	got, err := ParseConcise(" a, u, 1, , 0 8 linear 8:1 0, 8 8 error ; b,,,ro,0 1 zero")
	if err != nil || len(got) != 2 {
		t.Fatal(got, err)
	}
	if a := got[0]; a.Name != "a" || a.UUID != "u" || a.Minor != 1 || !a.HasMinor || a.ReadOnly || a.Table.String() != "0 8 linear 8:1 0\n8 8 error \n" {
		t.Errorf("%+v", a)
	}
	if b := got[1]; b.Name != "b" || !b.ReadOnly {
		t.Errorf("%+v", b)
	}
}

func TestParseConciseRefuses(t *testing.T) {
	for _, s := range []string{
		"", " ", ";", "a", "a,,,rw", "a,,,rw,", "a,,,xx,0 8 zero", "a,,-1,rw,0 8 zero", "a,,x,rw,0 8 zero", "a,,1048576,rw,0 8 zero",
		",,,rw,0 8 zero", "a b,,,rw,0 8 zero", "..,,,rw,0 8 zero", "a,u u,,rw,0 8 zero", `a,,,rw,0 8 zero\`, "a,,,rw,0 8 zero;;",
		"a,,,rw,0 8", "a,,,rw,0 8 zero,", strings.Repeat("a", 128) + ",,,rw,0 8 zero",
	} {
		if got, err := ParseConcise(s); err == nil {
			t.Errorf("%q is read as %+v", s, got)
		}
	}
}

func TestFormatConciseRefuses(t *testing.T) {
	table := Table{{0, 8, "zero", ""}}
	for _, d := range []ConciseDevice{
		{Name: "", Table: table},
		{Name: "a b", Table: table},
		{Name: "a", UUID: "u u", Table: table},
		{Name: "a"},
		{Name: "a", Minor: 1, Table: table},
		{Name: "a", Minor: 1 << 20, HasMinor: true, Table: table},
		{Name: "a", Table: Table{{0, 8, "zero", "a # b"}}},
	} {
		if s, err := FormatConcise(d); err == nil {
			t.Errorf("%+v is written as %q", d, s)
		}
	}
}

func FuzzParseConcise(f *testing.F) {
	f.Add("img,,,rw,0 8 linear 8:1 0,8 8 linear 8:1 100")
	f.Add(`a\\x20b,u,3,ro,0 8 t\,\; a\,b\;c\\d;b,,,,0 8 error `)
	f.Fuzz(func(t *testing.T, s string) {
		devices, err := ParseConcise(s)
		if err != nil {
			return
		}
		printed, err := FormatConcise(devices...)
		if err != nil {
			t.Fatalf("%q: parsed but not printable: %v", s, err)
		}
		again, err := ParseConcise(printed)
		if err != nil || !reflect.DeepEqual(again, devices) {
			t.Fatalf("%q: got %+v after printing, %v", s, again, err)
		}
	})
}
