package extents

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// brief is what scripts rely on of a problem.
type brief struct {
	rule           Rule
	offset, length Bytes
}

func TestProblems(t *testing.T) {
	const block = 4096
	one := func(flags Flags) []Extent {
		return []Extent{{0, 4096, 4096, 0}, {4096, 16384, 4096, flags}, {8192, 65536, 4096, FlagLast}}
	}
	second := func(rule Rule) []brief { return []brief{{rule, 4096, 4096}} }
	tests := []struct {
		name string
		rows []Extent
		want []brief
	}{
		{"good", one(0), nil},
		{"merged is fine", one(FlagMerged), nil},
		{"no rows", nil, []brief{{Hole, 0, 12288}}},
		{"hole at the start", []Extent{{4096, 4096, 8192, FlagLast}}, []brief{{Hole, 0, 4096}}},
		{"hole in the middle", []Extent{{0, 4096, 4096, 0}, {8192, 16384, 4096, FlagLast}}, []brief{{Hole, 4096, 4096}}},
		{"hole at the end", []Extent{{0, 4096, 4096, FlagLast}}, []brief{{Hole, 4096, 8192}}},
		{"unwritten", one(FlagUnwritten), second(Unwritten)},
		{"delalloc", one(FlagDelalloc), second(Delalloc)},
		{"delalloc as the kernel sets it", one(FlagDelalloc | FlagUnknown), second(Delalloc)},
		{"unknown", one(FlagUnknown), second(Unknown)},
		{"shared", one(FlagShared), second(Shared)},
		{"encoded", one(FlagEncoded), second(Encoded)},
		{"encrypted", one(FlagEncrypted | FlagEncoded), second(Encrypted)},
		{"inline", one(FlagInline | FlagNotAligned), second(Inline)},
		{"tail", one(FlagTail | FlagNotAligned), second(Tail)},
		{"not aligned flag", one(FlagNotAligned), second(NotAligned)},
		{"unknown bit", one(0x4000), second(Unknown)},
		{"highest bit", one(0x80000000), second(Unknown)},
		{"two at once", one(FlagShared | FlagUnwritten), []brief{{Unwritten, 4096, 4096}, {Shared, 4096, 4096}}},
		{"address off the block", []Extent{{0, 4096 + 512, 12288, FlagLast}}, []brief{{NotAligned, 0, 12288}}},
		{"row ends off the block", []Extent{{0, 4096, 5120, 0}, {5120, 65536, 7168, FlagLast}}, []brief{{NotAligned, 0, 12288}}},
		{"address 0", []Extent{{0, 0, 12288, FlagLast}}, []brief{{Unknown, 0, 12288}}},
		{"no last row", []Extent{{0, 4096, 12288, 0}}, []brief{{Unknown, 0, 12288}}},
		{"last row in the middle", []Extent{{0, 4096, 4096, FlagLast}, {4096, 16384, 8192, FlagLast}}, []brief{{Unknown, 0, 4096}}},
		{"overlap", []Extent{{0, 4096, 8192, 0}, {4096, 65536, 8192, FlagLast}}, []brief{{Hole, 8192, 4096}, {Unknown, 4096, 8192}}},
		{"the same row twice", []Extent{{0, 4096, 12288, 0}, {0, 4096, 12288, FlagLast}}, []brief{{Unknown, 0, 12288}, {Shared, 0, 12288}}},
		{"backwards", []Extent{{4096, 8192, 8192, 0}, {0, 65536, 4096, FlagLast}}, []brief{{Hole, 0, 4096}, {Unknown, 0, 4096}}},
		{"empty row", []Extent{{0, 4096, 12288, 0}, {12288, 65536, 0, FlagLast}}, nil}, // clipped away
		{"empty row inside", []Extent{{0, 4096, 8192, 0}, {8192, 65536, 0, 0}, {8192, 65536, 4096, FlagLast}}, []brief{{Unknown, 8192, 0}}},
		{"same blocks twice", []Extent{{0, 4096, 4096, 0}, {4096, 8192, 4096, 0}, {8192, 4096, 4096, FlagLast}}, []brief{{Shared, 8192, 4096}}},
		{"same blocks in part", []Extent{{0, 65536, 8192, 0}, {8192, 61440, 4096 + 4096, FlagLast}}, nil}, // the overlap lies beyond the end
		{"blocks inside others", []Extent{{0, 65536, 8192, 0}, {8192, 69632, 4096, FlagLast}}, []brief{{Shared, 8192, 4096}}},
		{"neighbours are one problem", []Extent{{0, 4096, 4096, FlagUnwritten}, {4096, 65536, 4096, FlagUnwritten}, {8192, 32768, 4096, FlagLast}}, []brief{{Unwritten, 0, 8192}}},
		{"preallocation beyond the end", []Extent{{0, 4096, 12288, 0}, {12288, 65536, 4096, FlagUnwritten | FlagLast}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			problems := Layout{Size: 12288, Extents: tt.rows}.Problems(block, 0)
			var got []brief
			for _, p := range problems {
				got = append(got, brief{p.Rule, p.Offset, p.Length})
				if p.Message == "" {
					t.Errorf("no message: %+v", p)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestProblemsOfUnalignedSize(t *testing.T) {
	// The size is a problem of the file's, not of its last extent.
	l := Layout{Size: 5000, Extents: []Extent{{0, 4096, 8192, FlagLast}}}
	if got := l.Problems(4096, 0); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

func TestManyProblems(t *testing.T) {
	var l Layout
	const holes = 25
	for i := range Bytes(holes) {
		l.Extents = append(l.Extents, Extent{Logical: (2*i + 1) * 4096, Physical: (2*i + 1) * 8192, Length: 4096})
	}
	l.Extents[holes-1].Flags = FlagLast
	l.Size = 2 * holes * 4096
	got := l.Problems(4096, 0)
	if len(got) != maxListed+1 {
		t.Fatalf("%d problems, want %d", len(got), maxListed+1)
	}
	for i, p := range got[:maxListed] {
		if p.Rule != Hole || p.Offset != Bytes(i)*8192 || p.Length != 4096 {
			t.Errorf("problem %d is %+v", i, p)
		}
	}
	sum := got[maxListed]
	if want := fmt.Sprintf("and %d more such places, %d bytes in all", holes-maxListed, (holes-maxListed)*4096); !strings.HasPrefix(sum.Message, want) {
		t.Errorf("summary is %q, want %q", sum.Message, want)
	}
	if sum.Rule != Hole || sum.Offset != maxListed*8192 || sum.Offset+sum.Length != (holes-1)*8192+4096 {
		t.Errorf("summary covers %d from %d", sum.Length, sum.Offset)
	}
}

func TestTooManyExtents(t *testing.T) {
	// Four rows, three pieces after merging.
	l := Layout{Size: 16384, Extents: []Extent{{0, 4096, 4096, 0}, {4096, 8192, 4096, 0}, {8192, 65536, 4096, 0}, {12288, 4 << 20, 4096, FlagLast}}}
	for limit, want := range map[int]int{0: 0, 2: 1, 3: 0, 4: 0} {
		got := l.Problems(4096, limit)
		if len(got) != want || want == 1 && got[0].Rule != TooManyExtents {
			t.Errorf("limit %d: %v", limit, got)
		}
	}
}
