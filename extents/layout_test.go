package extents

import (
	"slices"
	"testing"
)

func TestClip(t *testing.T) {
	tests := []struct {
		name       string
		size       Bytes
		rows, want []Extent
	}{
		{"nothing", 0, nil, nil},
		{"fits", 8192, []Extent{{0, 4096, 8192, FlagLast}}, []Extent{{0, 4096, 8192, FlagLast}}},
		{"last row reaches over the end", 5000, []Extent{{0, 4096, 8192, FlagLast}}, []Extent{{0, 4096, 5000, FlagLast}}},
		{
			"preallocation beyond the end", 4096,
			[]Extent{{0, 4096, 4096, 0}, {4096, 65536, 65536, FlagUnwritten | FlagLast}},
			[]Extent{{0, 4096, 4096, FlagLast}},
		},
		{
			"preallocation after a hole beyond the end", 4096,
			[]Extent{{0, 4096, 4096, 0}, {1 << 20, 65536, 65536, FlagUnwritten}, {2 << 20, 1 << 20, 4096, FlagUnwritten | FlagLast}},
			[]Extent{{0, 4096, 4096, FlagLast}},
		},
		{"only preallocation", 0, []Extent{{0, 4096, 4096, FlagUnwritten | FlagLast}}, []Extent{}},
		{"hole at the end", 8192, []Extent{{0, 4096, 4096, FlagLast}}, []Extent{{0, 4096, 4096, FlagLast}}},
		{"list without an end", 8192, []Extent{{0, 4096, 16384, 0}}, []Extent{{0, 4096, 8192, 0}}},
	}
	for _, tt := range tests {
		original := slices.Clone(tt.rows)
		got := Layout{Size: tt.size, Extents: tt.rows}.Clip()
		if got.Size != tt.size || !slices.Equal(got.Extents, tt.want) {
			t.Errorf("%s: got %+v, want %+v", tt.name, got.Extents, tt.want)
		}
		if !slices.Equal(tt.rows, original) {
			t.Errorf("%s: Clip changed its argument to %+v", tt.name, tt.rows)
		}
	}
}

func TestMerge(t *testing.T) {
	tests := []struct {
		name       string
		rows, want []Extent
	}{
		{"none", nil, []Extent{}},
		{"adjacent", []Extent{{0, 4096, 4096, 0}, {4096, 8192, 4096, FlagLast}}, []Extent{{0, 4096, 8192, FlagLast}}},
		{
			"merged flag is no difference",
			[]Extent{{0, 4096, 4096, FlagMerged}, {4096, 8192, 4096, 0}, {8192, 12288, 4096, FlagMerged | FlagLast}},
			[]Extent{{0, 4096, 12288, FlagMerged | FlagLast}},
		},
		{
			"adjacent on the disk only",
			[]Extent{{0, 4096, 4096, 0}, {8192, 8192, 4096, FlagLast}},
			[]Extent{{0, 4096, 4096, 0}, {8192, 8192, 4096, FlagLast}},
		},
		{
			"adjacent in the file only",
			[]Extent{{0, 4096, 4096, 0}, {4096, 12288, 4096, FlagLast}},
			[]Extent{{0, 4096, 4096, 0}, {4096, 12288, 4096, FlagLast}},
		},
		{
			"different flags",
			[]Extent{{0, 4096, 4096, FlagUnwritten}, {4096, 8192, 4096, FlagLast}},
			[]Extent{{0, 4096, 4096, FlagUnwritten}, {4096, 8192, 4096, FlagLast}},
		},
		{
			"a last one in the middle stays visible",
			[]Extent{{0, 4096, 4096, FlagLast}, {4096, 8192, 4096, FlagLast}},
			[]Extent{{0, 4096, 4096, FlagLast}, {4096, 8192, 4096, FlagLast}},
		},
		{
			"backwards",
			[]Extent{{4096, 8192, 4096, 0}, {0, 4096, 4096, FlagLast}},
			[]Extent{{4096, 8192, 4096, 0}, {0, 4096, 4096, FlagLast}},
		},
	}
	for _, tt := range tests {
		original := slices.Clone(tt.rows)
		got := Layout{Size: 1 << 20, Extents: tt.rows}.Merge()
		if got.Size != 1<<20 || !slices.Equal(got.Extents, tt.want) {
			t.Errorf("%s: got %+v, want %+v", tt.name, got.Extents, tt.want)
		}
		if !slices.Equal(tt.rows, original) {
			t.Errorf("%s: Merge changed its argument to %+v", tt.name, tt.rows)
		}
	}
}

func TestWindow(t *testing.T) {
	l := Layout{Size: 20480, Extents: []Extent{
		{0, 40960, 8192, 0}, {8192, 4096, 4096, FlagShared}, {16384, 81920, 8192, FlagLast},
	}}
	tests := []struct {
		offset, length Bytes
		want           []Extent
	}{
		{0, 20480, []Extent{{0, 40960, 8192, 0}, {8192, 4096, 4096, FlagShared}, {16384, 81920, 4096, FlagLast}}},
		{0, 4096, []Extent{{0, 40960, 4096, FlagLast}}},
		{4096, 4096, []Extent{{0, 45056, 4096, FlagLast}}},
		{4096, 8192, []Extent{{0, 45056, 4096, 0}, {4096, 4096, 4096, FlagShared | FlagLast}}},
		{12288, 4096, []Extent{}},
		{12288, 8192, []Extent{{4096, 81920, 4096, FlagLast}}},
		{20479, 1, []Extent{{0, 86015, 1, FlagLast}}},
	}
	for _, tt := range tests {
		got, err := l.Window(tt.offset, tt.length)
		if err != nil || got.Size != tt.length || !slices.Equal(got.Extents, tt.want) {
			t.Errorf("Window(%d, %d) = %+v, %v, want %+v", tt.offset, tt.length, got, err, tt.want)
		}
	}
	for _, bad := range [][2]Bytes{{0, 0}, {0, -1}, {-4096, 4096}, {0, 20481}, {20480, 1}, {4096, 16385}, {1 << 62, 1 << 62}} {
		if got, err := l.Window(bad[0], bad[1]); err == nil {
			t.Errorf("Window(%d, %d) = %+v, want an error", bad[0], bad[1], got)
		}
	}
}

func TestDiff(t *testing.T) {
	base := Layout{Size: 12288, Extents: []Extent{{0, 4096, 8192, 0}, {8192, 65536, 4096, FlagLast}}}
	tests := []struct {
		name  string
		other Layout
		want  string
	}{
		{"same", base, ""},
		{"cut elsewhere", Layout{12288, []Extent{{0, 4096, 4096, FlagMerged}, {4096, 8192, 4096, 0}, {8192, 65536, 4096, FlagLast}}}, ""},
		{"preallocation beyond the end", Layout{12288, []Extent{{0, 4096, 8192, 0}, {8192, 65536, 8192, 0}, {16384, 1 << 20, 4096, FlagUnwritten | FlagLast}}}, ""},
		{"size", Layout{16384, base.Extents}, "the size changed from 12288 to 16384 bytes"},
		{"moved in part", Layout{12288, []Extent{{0, 4096, 4096, 0}, {4096, 16384, 4096, 0}, {8192, 65536, 4096, FlagLast}}}, "byte 4096 changed from address 8192 to address 16384"},
		{"hole", Layout{12288, []Extent{{0, 4096, 8192, FlagLast}}}, "byte 8192 changed from address 65536 to a hole"},
		{"shared", Layout{12288, []Extent{{0, 4096, 8192, 0}, {8192, 65536, 4096, FlagShared | FlagLast}}}, "byte 8192 changed from address 65536 to address 65536 shared"},
		{"nothing left", Layout{12288, nil}, "byte 0 changed from address 4096 to a hole"},
		{"overlap", Layout{12288, []Extent{{0, 4096, 8192, 0}, {4096, 8192, 4096, 0}, {8192, 65536, 4096, FlagLast}}}, "the extents overlap or run backwards"},
		{"empty row", Layout{12288, []Extent{{0, 4096, 8192, 0}, {8192, 65536, 4096, 0}, {12288, 1, 0, FlagLast}}}, "the extents overlap or run backwards"},
	}
	for _, tt := range tests {
		if got := Diff(base, tt.other); got != tt.want {
			t.Errorf("%s: Diff = %q, want %q", tt.name, got, tt.want)
		}
		if base.Equal(tt.other) != (tt.want == "") || tt.other.Equal(base) != (tt.want == "") {
			t.Errorf("%s: Equal does not agree with Diff, or is not symmetric", tt.name)
		}
	}
}
