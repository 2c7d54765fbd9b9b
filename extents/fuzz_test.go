package extents

import (
	"encoding/binary"
	"testing"
)

// layoutFrom makes an ordered layout of data, eight bytes a row: the gap before it,
// its length, how its address differs from the end of the one before, its flags.
func layoutFrom(data []byte, size Bytes) Layout {
	l := Layout{Size: size}
	logical, physical := Bytes(0), Bytes(1<<20)
	for ; len(data) >= 8; data = data[8:] {
		le := binary.LittleEndian
		logical += Bytes(data[0] & 3)
		physical += Bytes(int8(data[1]))
		length := Bytes(le.Uint16(data[2:]))%64 + 1
		e := Extent{Logical: logical, Physical: physical, Length: length, Flags: Flags(le.Uint32(data[4:]) & 0x7001)}
		l.Extents = append(l.Extents, e)
		logical, physical = logical+length, physical+length
	}
	return l
}

// lookup is the oracle: where byte pos lies, found row by row.
func lookup(l Layout, pos Bytes) place {
	for _, e := range l.Extents {
		if pos >= e.Logical && pos < e.end() {
			return place{true, e.Physical + pos - e.Logical, e.Flags.judged()}
		}
	}
	return place{}
}

func FuzzLayout(f *testing.F) {
	f.Add([]byte("\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x08\x00\x01\x00\x00\x00"), uint16(14), uint16(3), uint16(9))
	f.Add([]byte("\x01\x05\x08\x00\x00\x20\x00\x00\x00\x00\x08\x00\x01\x20\x00\x00"), uint16(40), uint16(0), uint16(40))
	f.Fuzz(func(t *testing.T, data []byte, size, offset, length uint16) {
		if len(data) > 40*8 {
			return
		}
		l := layoutFrom(data, Bytes(size))
		clipped, merged := l.Clip(), l.Merge()
		if merged.pieces() != len(merged.Extents) {
			t.Errorf("merging once was not enough: %+v", merged)
		}
		for pos := Bytes(0); pos < l.Size; pos++ {
			want := lookup(l, pos)
			if got := lookup(clipped, pos); got != want {
				t.Fatalf("Clip moved byte %d from %v to %v", pos, want, got)
			}
			if got := lookup(merged, pos); got != want {
				t.Fatalf("Merge moved byte %d from %v to %v", pos, want, got)
			}
		}
		for _, e := range clipped.Extents {
			if e.end() > l.Size || e.Length <= 0 {
				t.Errorf("clipped at %d, but there is %+v", l.Size, e)
			}
		}
		if !l.Equal(l) || !l.Equal(clipped) || !merged.Equal(l) || Diff(l, merged.Clip()) != "" {
			t.Errorf("clipping and merging %+v made another layout", l)
		}
		checkProblems(t, l)
		window, err := l.Window(Bytes(offset), Bytes(length))
		if err != nil {
			return
		}
		for pos := Bytes(0); pos < window.Size; pos++ {
			if want, got := lookup(l, pos+Bytes(offset)), lookup(window, pos); got != want {
				t.Fatalf("Window moved byte %d from %v to %v", pos, want, got)
			}
		}
	})
}

// checkProblems compares the judgement on an ordered layout with one made byte by byte.
func checkProblems(t *testing.T, l Layout) {
	bad := map[Rule]map[Bytes]bool{Hole: {}, Shared: {}, Unknown: {}}
	used := map[Bytes]bool{}
	for pos := Bytes(0); pos < l.Size; pos++ {
		p := lookup(l, pos)
		if !p.allocated {
			bad[Hole][pos] = true
		}
		if p.flags&FlagShared != 0 || used[p.physical] {
			bad[Shared][pos] = true
		}
		if p.flags&0x4000 != 0 {
			bad[Unknown][pos] = true
		}
		if p.allocated {
			used[p.physical] = true
		}
	}
	found := map[Rule]bool{}
	for _, p := range l.Problems(1, 0) {
		found[p.Rule] = true
		if p.Offset < 0 || p.Length < 0 || p.Offset+p.Length > l.Size {
			t.Errorf("problem outside the file: %+v", p)
		}
	}
	for _, rule := range []Rule{Hole, Shared} {
		if found[rule] != (len(bad[rule]) > 0) {
			t.Errorf("%s: found %v, but %d bytes are so in %+v", rule, found[rule], len(bad[rule]), l)
		}
	}
	if len(bad[Unknown]) > 0 && !found[Unknown] {
		t.Errorf("unknown flags were not found in %+v", l)
	}
}
