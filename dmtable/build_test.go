package dmtable_test

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	. "dmloop/dmtable"
)

var (
	sda1 = Device{Major: 8, Minor: 1}
	vdb  = Device{Major: 254, Minor: 16}
)

func TestBuild(t *testing.T) {
	tests := []struct {
		name string
		segs []Segment
		want string
	}{
		{"none", nil, ""},
		{"one", []Segment{{sda1, 2048, 8}}, "0 8 linear 8:1 2048\n"},
		{"adjacent ones are merged", []Segment{{sda1, 0, 8}, {sda1, 8, 8}, {sda1, 16, 1}}, "0 17 linear 8:1 0\n"},
		{"a gap is not merged", []Segment{{sda1, 0, 8}, {sda1, 9, 8}}, "0 8 linear 8:1 0\n8 8 linear 8:1 9\n"},
		{"backwards is not merged", []Segment{{sda1, 8, 8}, {sda1, 0, 8}}, "0 8 linear 8:1 8\n8 8 linear 8:1 0\n"},
		{"another device is not merged", []Segment{{sda1, 0, 8}, {vdb, 8, 8}}, "0 8 linear 8:1 0\n8 8 linear 254:16 8\n"},
		{"another minor is not merged", []Segment{{sda1, 0, 8}, {Device{8, 2}, 8, 8}}, "0 8 linear 8:1 0\n8 8 linear 8:2 8\n"},
		{"largest", []Segment{{Device{4095, 1<<20 - 1}, MaxSectors - 1, 1}}, "0 1 linear 4095:1048575 18014398509481982\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			table, err := Build(test.segs)
			if err != nil {
				t.Fatal(err)
			}
			if got := table.String(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestBuildRefuses(t *testing.T) {
	tests := []struct {
		name string
		segs []Segment
		row  int
		want string
	}{
		{"length 0", []Segment{{sda1, 0, 8}, {sda1, 8, 0}}, 1, "length 0"},
		{"end overflows", []Segment{{sda1, ^Sectors(0), 1}}, 0, "largest possible"},
		{"length overflows", []Segment{{sda1, 1, ^Sectors(0)}}, 0, "largest possible"},
		{"one sector too many", []Segment{{sda1, MaxSectors, 1}}, 0, "largest possible"},
		{"sum too large", []Segment{{sda1, 0, MaxSectors}, {vdb, 0, 1}}, 1, "larger than possible"},
		{"major", []Segment{{Device{4096, 0}, 0, 1}}, 0, "impossible device 4096:0"},
		{"minor", []Segment{{Device{8, 1 << 20}, 0, 1}}, 0, "impossible device 8:1048576"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			table, err := Build(test.segs)
			var row *RowError
			if !errors.As(err, &row) || row.Row != test.row || !strings.Contains(err.Error(), test.want) || table != nil {
				t.Errorf("got %v, %v; want row %d, %q", table, err, test.row, test.want)
			}
		})
	}
}

func TestSegments(t *testing.T) {
	segs := []Segment{{sda1, 2048, 8}, {vdb, 0, 16}, {sda1, 4096, 1}}
	table, err := Build(segs)
	if err != nil {
		t.Fatal(err)
	}
	got, err := table.Segments()
	if err != nil || !slices.Equal(got, segs) {
		t.Errorf("got %v, %v", got, err)
	}
	if table.Size() != 25 {
		t.Errorf("size %d", table.Size())
	}
	for _, text := range []string{
		"0 8 error",
		"0 8 striped 1 8 8:1 0",
		"8 8 linear 8:1 0",
		"0 8 linear 8:1 0\n9 8 linear 8:1 9",
		"0 8 linear /dev/sda1 0",
		"0 8 linear 8:1",
		"0 8 linear 8:1 0 0",
		"0 8 linear 8:1  0",
		"0 8 linear 8:1 -1",
		"0 8 linear 8:1 +1",
		"0 8 linear 8:1 0x10",
		"0 8 linear 8:1 18014398509481984",
		"0 8 linear 8:1 99999999999999999999",
		"0 8 linear 8:-1 0",
		"0 8 linear 8 0",
		"0 8 linear 8:1:1 0",
		"0 8 linear 4096:1 0",
		"0 0 linear 8:1 0",
	} {
		table, err := ParseText(text)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if segs, err := table.Segments(); err == nil {
			t.Errorf("%q gives segments %v", text, segs)
		}
	}
}

func TestStripes(t *testing.T) {
	row := Row{Start: 100, Length: 24, Target: "striped", Args: "2 3 8:1 1000 254:16 2000"}
	s, err := row.Stripes()
	if err != nil {
		t.Fatal(err)
	}
	// Chunks of 3 sectors in turn from both devices, by hand.
	wants := []Segment{
		{sda1, 1000, 3}, {sda1, 1001, 2}, {sda1, 1002, 1},
		{vdb, 2000, 3}, {vdb, 2001, 2}, {vdb, 2002, 1},
		{sda1, 1003, 3}, {sda1, 1004, 2}, {sda1, 1005, 1},
		{vdb, 2003, 3},
	}
	for at, want := range wants {
		if got := s.Piece(Sectors(at)); got != want {
			t.Errorf("sector %d lies at %v, want %v", at, got, want)
		}
	}
	if got := s.Piece(23); got != (Segment{vdb, 2011, 1}) {
		t.Errorf("last sector lies at %v", got)
	}
	for _, row := range []Row{
		{0, 24, "linear", "2 3 8:1 1000 254:16 2000"},
		{0, 24, "striped", ""},
		{0, 24, "striped", "2"},
		{0, 24, "striped", "0 3"},
		{0, 24, "striped", "2 0 8:1 0 8:2 0"},
		{0, 24, "striped", "2 3 8:1 0"},
		{0, 24, "striped", "2 3 8:1 0 8:2 0 8:3 0"},
		{0, 24, "striped", "2 3 8:1 0 8:2 0 1"},
		{0, 24, "striped", "4294967295 3 8:1 0"},
		{0, 24, "striped", "2 4294967296 8:1 0 8:2 0"},
		{0, 24, "striped", "-2 3 8:1 0 8:2 0"},
		{0, 24, "striped", "2 3 8:1 0 /dev/sdb 0"},
		{0, 24, "striped", "2 3 8:1 0 8:2 x"},
		{0, 24, "striped", "2  3 8:1 0 8:2 0"},
		{0, 24, "striped", "2 3 8:1 0 8:2 18014398509481983"},
		{0, 23, "striped", "2 3 8:1 0 8:2 0"},
		{0, 20, "striped", "2 3 8:1 0 8:2 0"},
		{0, 0, "striped", "2 3 8:1 0 8:2 0"},
	} {
		if s, err := row.Stripes(); err == nil {
			t.Errorf("%v gives stripes %v", row, s)
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		segs := make([]Segment, n)
		for i := range segs {
			segs[i] = Segment{sda1, Sectors(i) * 100, 8}
		}
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Build(segs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestBuildAllocations(t *testing.T) {
	segs := make([]Segment, 1000)
	for i := range segs {
		segs[i] = Segment{Device{uint32(i), uint32(i * 37)}, Sectors(i) << (i % 40), Sectors(i%7 + 1)}
	}
	if n := testing.AllocsPerRun(5, func() {
		if _, err := Build(segs); err != nil {
			t.Fatal(err)
		}
	}); n > 2 {
		t.Errorf("%v allocations, want one for the rows and one for all arguments", n)
	}
}
