package backing

import (
	"slices"
	"testing"

	"dmloop/extents"
)

// row is an extents.Extent in short.
type row struct {
	logical, physical, length extents.Bytes
	flags                     extents.Flags
}

func TestPlanRepair(t *testing.T) {
	const last, unwritten, shared = extents.FlagLast, extents.FlagUnwritten, extents.FlagShared
	tests := []struct {
		name    string
		size    extents.Bytes
		rows    []row
		zero    []stretch
		rewrite []stretch
		report  Report
	}{
		{"good", 8192, []row{{0, 4096, 8192, last}}, nil, nil, Report{}},
		{"nothing there", 8192, nil, []stretch{{0, 8192}}, nil, Report{Holes: 8192}},
		{"hole in the middle", 12288, []row{{0, 4096, 4096, 0}, {8192, 65536, 4096, last}}, []stretch{{4096, 4096}}, nil, Report{Holes: 4096}},
		{"hole at the end", 12288, []row{{0, 4096, 4096, last}}, []stretch{{4096, 8192}}, nil, Report{Holes: 8192}},
		{
			"hole beside unwritten", 12288, []row{{4096, 4096, 4096, unwritten}, {8192, 65536, 4096, unwritten | last}},
			[]stretch{{0, 12288}}, nil, Report{Holes: 4096, Unwritten: 8192},
		},
		{
			"shared and encoded", 16384,
			[]row{{0, 4096, 4096, shared}, {4096, 65536, 4096, 0}, {8192, 1 << 20, 4096, extents.FlagEncoded | shared}, {12288, 2 << 20, 4096, shared | last}},
			nil, []stretch{{0, 4096}, {8192, 8192}}, Report{Shared: 8192, Encoded: 4096},
		},
		{"unwritten and shared reads as zeros", 4096, []row{{0, 4096, 4096, unwritten | shared | last}}, []stretch{{0, 4096}}, nil, Report{Unwritten: 4096}},
		{"preallocation beyond the end", 4096, []row{{0, 4096, 4096, 0}, {4096, 65536, 4096, unwritten | last}}, nil, nil, Report{}},
		{
			"what cannot be repaired", 20480,
			[]row{
				{0, 0, 4096, extents.FlagUnknown}, {4096, 0, 4096, extents.FlagDelalloc | extents.FlagUnknown | unwritten},
				{8192, 4096, 4096, extents.FlagEncrypted | extents.FlagEncoded}, {12288, 0, 4096, extents.FlagInline}, {16384, 0, 4096, extents.FlagTail | last},
			},
			nil, nil, Report{},
		},
		// Rows out of order must not make data look like a hole to be zeroed.
		{"overlap", 12288, []row{{0, 4096, 8192, 0}, {4096, 65536, 8192, last}}, nil, nil, Report{}},
		{"backwards", 12288, []row{{4096, 4096, 8192, 0}, {0, 65536, 4096, last}}, nil, nil, Report{}},
		{"empty row", 8192, []row{{0, 4096, 0, 0}, {0, 4096, 8192, last}}, nil, nil, Report{}},
	}
	for _, tt := range tests {
		l := extents.Layout{Size: tt.size}
		for _, r := range tt.rows {
			l.Extents = append(l.Extents, extents.Extent{Logical: r.logical, Physical: r.physical, Length: r.length, Flags: r.flags})
		}
		got := planRepair(l)
		if !slices.Equal(got.zero, tt.zero) || !slices.Equal(got.rewrite, tt.rewrite) || got.report != tt.report {
			t.Errorf("%s: got %+v", tt.name, got)
		}
	}
}

func TestChunks(t *testing.T) {
	stretches := []stretch{{4096, chunkSize + 4096}, {1 << 40, 512}, {0, 2 * chunkSize}, {7, 0}}
	want := []stretch{{4096, chunkSize}, {4096 + chunkSize, 4096}, {1 << 40, 512}, {0, chunkSize}, {chunkSize, chunkSize}}
	if got := slices.Collect(chunks(stretches)); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMeter(t *testing.T) {
	var shown [][2]extents.Bytes
	m := meter{show: func(done, total extents.Bytes) { shown = append(shown, [2]extents.Bytes{done, total}) }}
	m.grow(10)
	m.tick(4)
	m.grow(5)
	m.tick(11)
	if want := [][2]extents.Bytes{{0, 10}, {4, 10}, {4, 15}, {15, 15}}; !slices.Equal(shown, want) {
		t.Errorf("shown %v, want %v", shown, want)
	}
	(&meter{}).grow(1) // nobody looks
}
