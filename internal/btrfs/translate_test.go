package btrfs

import (
	"errors"
	"reflect"
	"testing"

	"dmloop/extents"
)

func TestTranslate(t *testing.T) {
	l := extents.Layout{Size: 40 * mib, Extents: []extents.Extent{
		{Logical: 0, Physical: 13 * mib, Length: 4 * mib},
		{Logical: 4 * mib, Physical: 121 * mib, Length: 8 * mib, Flags: extents.FlagMerged}, // over the end of a chunk
		{Logical: 12 * mib, Physical: 61 * mib, Length: 28*mib + 4096},                      // clipped
		{Logical: 44 * mib, Physical: 1, Length: 4096, Flags: extents.FlagLast},             // beyond the end
	}}
	got, err := Translate(l, sampleChunks, onlyDevice)
	want := extents.Layout{Size: 40 * mib, Extents: []extents.Extent{
		{Logical: 0, Physical: 13 * mib, Length: 4 * mib},
		{Logical: 4 * mib, Physical: 161 * mib, Length: 4 * mib, Flags: extents.FlagMerged},
		{Logical: 8 * mib, Physical: 500 * mib, Length: 4 * mib, Flags: extents.FlagMerged},
		{Logical: 12 * mib, Physical: 101 * mib, Length: 28 * mib, Flags: extents.FlagLast},
	}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v\nwant %+v", got, err, want)
	}
	// An extent that ends with its chunk, and is the last, keeps its mark.
	last := extents.Layout{Size: 8 * mib, Extents: []extents.Extent{{Physical: 121 * mib, Length: 8 * mib, Flags: extents.FlagLast}}}
	got, err = Translate(last, sampleChunks, onlyDevice)
	if err != nil || len(got.Extents) != 2 || got.Extents[0].Flags != 0 || got.Extents[1].Flags != extents.FlagLast {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestTranslateRefuses(t *testing.T) {
	at := func(phys extents.Bytes) extents.Layout {
		return extents.Layout{Size: 4096, Extents: []extents.Extent{{Physical: phys, Length: 4096, Flags: extents.FlagLast}}}
	}
	other := append([]Chunk(nil), sampleChunks...)
	other[0].Stripes = []Stripe{{2, 13 * mib}}
	raid := append([]Chunk(nil), sampleChunks...)
	raid[0].Type, raid[0].Stripes = Data|1<<4, []Stripe{{1, 13 * mib}, {2, 13 * mib}}
	for _, c := range []struct {
		name    string
		at      extents.Bytes
		chunks  []Chunk
		profile bool
	}{
		{"below all chunks", 4096, sampleChunks, false},
		{"no address", 0, sampleChunks, false},
		{"above all chunks", 189 * mib, sampleChunks, false},
		{"no chunks", 13 * mib, nil, false},
		{"metadata", 30 * mib, sampleChunks, true},
		{"another device", 13 * mib, other, true},
		{"RAID1", 13 * mib, raid, true},
	} {
		_, err := Translate(at(c.at), c.chunks, onlyDevice)
		var bad *ProfileError
		if err == nil || errors.As(err, &bad) != c.profile || err.Error() == "" {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// A chunk may end where none follows.
	long := extents.Layout{Size: 16 * mib, Extents: []extents.Extent{{Physical: 185 * mib, Length: 16 * mib}}}
	if got, err := Translate(long, sampleChunks, onlyDevice); err == nil {
		t.Errorf("beyond the last chunk: %+v", got)
	}
}

func TestProblems(t *testing.T) {
	good := Facts{NoCOW: true, Sealed: true, Filesystem: Filesystem{Devices: 1, Device: onlyDevice}, Chunks: sampleChunks}
	l := extents.Layout{Size: 4096, Extents: []extents.Extent{{Physical: 13 * mib, Length: 4096}}}
	dup := extents.Layout{Size: 8192, Extents: []extents.Extent{{Physical: 13 * mib, Length: 4096}, {Logical: 4096, Physical: 40 * mib, Length: 4096}}}
	for _, c := range []struct {
		name string
		l    extents.Layout
		edit func(f *Facts)
		want []extents.Rule
	}{
		{"good", l, func(*Facts) {}, nil},
		{"copied on write", l, func(f *Facts) { f.NoCOW = false }, []extents.Rule{extents.BtrfsCOW}},
		{"compressed", l, func(f *Facts) { f.Compressed = true }, []extents.Rule{extents.Compressed}},
		{"two devices", l, func(f *Facts) { f.Filesystem = Filesystem{Devices: 2} }, []extents.Rule{extents.MultiDevice}},
		{"DUP", dup, func(*Facts) {}, []extents.Rule{extents.BtrfsProfile}},
		{"plain", l, func(f *Facts) { f.Sealed = false }, []extents.Rule{extents.Unsealed}},
		{"all at once", dup, func(f *Facts) { f.NoCOW, f.Compressed, f.Filesystem.Devices, f.Sealed = false, true, 3, false }, []extents.Rule{extents.BtrfsCOW, extents.Compressed, extents.MultiDevice, extents.BtrfsProfile, extents.Unsealed}},
		{"no address", extents.Layout{Size: 4096, Extents: []extents.Extent{{Length: 4096}}}, func(*Facts) {}, nil},
	} {
		f := good
		c.edit(&f)
		var got []extents.Rule
		for _, p := range Problems(c.l, f) {
			got = append(got, p.Rule)
			if p.Message == "" {
				t.Errorf("%s: %+v", c.name, p)
			}
			if p.Rule == extents.BtrfsProfile && p.Offset != 4096 {
				t.Errorf("%s: %+v", c.name, p)
			}
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
