package dmtable_test

import (
	"errors"
	"strings"
	"testing"

	. "dmloop/dmtable"
)

func TestParseText(t *testing.T) {
	tests := []struct {
		name, text, want string
	}{
		{"plain", "0 8 linear 8:1 0\n", "0 8 linear 8:1 0\n"},
		{"no line end", "0 8 linear 8:1 0", "0 8 linear 8:1 0\n"},
		{"blanks", " \t0   8\tlinear   8:1 0 \t\r\n", "0 8 linear 8:1 0\n"},
		{"blanks within arguments stay", "0 8 linear 8:1  0\n", "0 8 linear 8:1  0\n"},
		{"comments", "# a table\n\n  # more\n0 8 linear 8:1 0 # why\n", "0 8 linear 8:1 0\n"},
		{"no arguments", "0 8 error\n", "0 8 error \n"},
		{"no arguments, as dmsetup prints it", "0 8 error \n", "0 8 error \n"},
		{"empty", "", ""},
		{"largest", "0 18446744073709551615 error\n", "0 18446744073709551615 error \n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			table, err := ParseText(test.text)
			if err != nil {
				t.Fatal(err)
			}
			text, err := table.AppendText([]byte(">"))
			if err != nil || string(text) != ">"+test.want || table.String() != test.want {
				t.Errorf("got %q, %v, want %q", text, err, test.want)
			}
		})
	}
}

func TestParseTextRefuses(t *testing.T) {
	tests := []struct {
		text string
		line int
	}{
		{"0\n", 1},
		{"0 8\n", 1},
		{"0 8 linear 8:1 0\n\nx 8 linear 8:1 0\n", 3},
		{"0 -8 linear 8:1 0\n", 1},
		{"+0 8 linear 8:1 0\n", 1},
		{"0 0x8 linear 8:1 0\n", 1},
		{"0 18446744073709551616 linear 8:1 0\n", 1},
		{"name: 0 8 linear 8:1 0\n", 1},
		{"0 8 linear 8:1\x00 0\n", 1},
		{"0 8 a-target-of-16-b 8:1\n", 1},
		{"0 8 \x01 8:1\n", 1},
		{"0 8# linear 8:1 0\n", 1},
	}
	for _, test := range tests {
		table, err := ParseText(test.text)
		var line *LineError
		if !errors.As(err, &line) || line.Line != test.line || table != nil {
			t.Errorf("%q: got %v, %v, want an error in line %d", test.text, table, err, test.line)
		}
	}
}

func TestParseDevice(t *testing.T) {
	for _, s := range []string{"", ":", "8", "8:", ":1", "8:1:2", "-8:1", "+8:1", "8: 1", "0x8:1", "4096:0", "0:1048576", "8:4294967297", "/dev/sda"} {
		if d, err := ParseDevice(s); err == nil {
			t.Errorf("%q gives %v", s, d)
		}
	}
	for _, d := range []Device{{0, 0}, {8, 1}, {4095, 1<<20 - 1}} {
		if got, err := ParseDevice(d.String()); err != nil || got != d {
			t.Errorf("%v gives %v, %v", d, got, err)
		}
	}
}

func FuzzParseText(f *testing.F) {
	f.Add("0 8 linear 8:1 0\n8 8 striped 2 4 8:1 0 8:2 0\n")
	f.Add("# x\n\n0 8 error #\n")
	f.Add("0 8 crypt a,b;c\\ 8:1 0")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := ParseText(text)
		if err != nil {
			return
		}
		printed, err := table.AppendText(nil)
		if err != nil {
			t.Fatalf("%q: parsed but not printable: %v", text, err)
		}
		again, err := ParseText(string(printed))
		if err != nil || !again.Equal(table) {
			t.Fatalf("%q: got %q after printing, %v", text, again, err)
		}
		if table.Validate(Limits{}) != nil {
			return
		}
		if segs, err := table.Segments(); err == nil {
			checkRebuilt(t, table, segs)
		}
	})
}

// checkRebuilt checks that building from a table's segments gives the same table,
// except for rows that adjoin.
func checkRebuilt(t *testing.T, table Table, segs []Segment) {
	rebuilt, err := Build(segs)
	if err != nil {
		t.Fatalf("%v: %v", segs, err)
	}
	if err := rebuilt.Validate(Limits{}); err != nil {
		t.Fatalf("%v: %v", segs, err)
	}
	if rebuilt.Size() != table.Size() || len(rebuilt) > len(table) {
		t.Fatalf("%v became %v", table, rebuilt)
	}
}

func BenchmarkText(b *testing.B) {
	segs := make([]Segment, 100_000)
	for i := range segs {
		segs[i] = Segment{sda1, Sectors(i) * 100, 8}
	}
	table, err := Build(segs)
	if err != nil {
		b.Fatal(err)
	}
	text := table.String()
	b.Run("String", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = table.String()
		}
	})
	b.Run("ParseText", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ParseText(text); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Validate", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := table.Validate(Limits{Block: 4}); err != nil {
				b.Fatal(err)
			}
		}
	})
	if strings.Count(text, "\n") != len(table) {
		b.Fatal("rows are missing")
	}
}
