package dmtable_test

import (
	"errors"
	"strings"
	"testing"

	. "dmloop/dmtable"
)

func TestValidate(t *testing.T) {
	const two = "0 8 linear 8:1 16\n8 8 linear 8:1 32\n"
	tests := []struct {
		name   string
		table  string
		limits Limits
		want   string // empty when the table is sound
	}{
		{"sound", two, Limits{}, ""},
		{"sound at 4 KiB", two, Limits{Block: 8}, ""},
		{"error target", "0 8 error\n", Limits{Block: 8}, ""},
		{"unknown target", "0 8 crypt aes 0 8:1 0\n", Limits{}, ""},
		{"striped", "0 16 striped 2 8 8:1 0 8:2 8\n", Limits{Block: 8}, ""},
		{"as many rows as allowed", two, Limits{Rows: 2}, ""},
		{"empty", "", Limits{}, "no rows"},
		{"too many rows", two, Limits{Rows: 1}, "row 1 (from sector 8) is one more than the 1 rows"},
		{"not from 0", "1 8 linear 8:1 0\n", Limits{}, "gap: sector 0"},
		{"gap", "0 8 linear 8:1 0\n9 8 linear 8:1 8\n", Limits{}, "gap: sector 8"},
		{"overlap", "0 8 linear 8:1 0\n7 8 linear 8:1 8\n", Limits{}, "overlaps"},
		{"order", "0 8 linear 8:1 0\n0 8 linear 8:1 8\n", Limits{}, "overlaps"},
		{"length 0", "0 0 linear 8:1 0\n", Limits{}, "length 0"},
		{"overflow", "0 18446744073709551615 linear 8:1 0\n", Limits{}, "largest possible"},
		{"overflow by a sector", "0 18014398509481983 zero\n18014398509481983 1 zero\n", Limits{}, "largest possible"},
		{"linear arguments", "0 8 linear sda 0\n", Limits{}, "bad argument"},
		{"linear end", "0 8 linear 8:1 18014398509481980\n", Limits{}, "largest possible"},
		{"striped arguments", "0 8 striped 2 8 8:1 0\n", Limits{}, "names 2 devices and sectors instead of 4"},
		{"start unaligned", "0 9 linear 8:1 0\n9 7 linear 8:1 16\n", Limits{Block: 8}, "row 0 (from sector 0) has start 0 and length 9"},
		{"length unaligned", "0 12 linear 8:1 0\n", Limits{Block: 8}, "not multiples"},
		{"base unaligned", "0 8 linear 8:1 4\n", Limits{Block: 8}, "sector 4 of 8:1"},
		{"stripe unaligned", "0 16 striped 2 8 8:1 0 8:2 4\n", Limits{Block: 8}, "sector 4 of 8:2"},
		{"chunk unaligned", "0 24 striped 2 3 8:1 0 8:2 0\n", Limits{Block: 8}, "chunks of 3"},
		{"block size", two, Limits{Block: 3}, "not a power of two"},
		{"target name", "0 8 sixteen-letters! 8:1\n", Limits{}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			table, err := ParseText(test.table)
			if test.name == "target name" {
				if err == nil {
					t.Fatal("a target name of 16 bytes was read")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			err = table.Validate(test.limits)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestValidateWords(t *testing.T) {
	for _, row := range []Row{
		{0, 8, "", ""},
		{0, 8, "sixteen-letters!", ""},
		{0, 8, "two words", ""},
		{0, 8, "new\nline", ""},
		{0, 8, "nul\x00", ""},
		{0, 8, "zero", "a\nb"},
		{0, 8, "zero", "a\x00b"},
	} {
		var e *RowError
		if err := (Table{row}).Validate(Limits{}); !errors.As(err, &e) {
			t.Errorf("%+v: %v", row, err)
		}
		if _, err := (Table{row}).AppendText(nil); !errors.As(err, &e) {
			t.Errorf("AppendText of %+v: %v", row, err)
		}
		if _, err := FormatConcise(ConciseDevice{Name: "x", Table: Table{row}}); !errors.As(err, &e) {
			t.Errorf("FormatConcise of %+v: %v", row, err)
		}
	}
}

func TestValidateMostRows(t *testing.T) {
	segs := make([]Segment, MaxRows+1)
	for i := range segs {
		segs[i] = Segment{sda1, Sectors(2 * i), 1}
	}
	table, err := Build(segs)
	if err != nil {
		t.Fatal(err)
	}
	if err := table[:MaxRows].Validate(Limits{Rows: MaxRows + 5}); err != nil {
		t.Error(err)
	}
	if err := table.Validate(Limits{Rows: MaxRows + 5}); err == nil {
		t.Error("one row too many is accepted")
	}
}

func TestDiff(t *testing.T) {
	parse := func(text string) Table {
		table, err := ParseText(text)
		if err != nil {
			t.Fatal(err)
		}
		return table
	}
	a := parse("0 8 linear 8:1 0\n8 8 linear 8:1 100\n")
	tests := []struct {
		now, want string
	}{
		{a.String(), ""},
		{"0 8 linear 8:1 0\n8 8 linear 8:1 200\n", "sectors 8-15 were linear 8:1 100, now sectors 8-15 are linear 8:1 200"},
		{"0 16 error\n", "sectors 0-7 were linear 8:1 0, now sectors 0-15 are error"},
		{"0 8 linear 8:1 0\n", "sectors 8-15 were linear 8:1 100, now the table ends at sector 8"},
		{a.String() + "16 8 linear 8:1 0\n", "the table ended at sector 16, now sectors 16-23 are linear 8:1 0"},
		{"", "sectors 0-7 were linear 8:1 0, now the table ends at sector 0"},
	}
	for _, test := range tests {
		now := parse(test.now)
		if got := a.Diff(now); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
		if a.Equal(now) != (test.want == "") {
			t.Errorf("Equal disagrees with Diff about %q", test.now)
		}
	}
}
