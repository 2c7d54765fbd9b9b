package seal

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"dmloop/extents"
)

// where returns the device address of one byte of a file.
func where(l extents.Layout, at extents.Bytes) extents.Bytes {
	for _, e := range l.Extents {
		if at >= e.Logical && at < e.Logical+e.Length {
			return e.Physical + at - e.Logical
		}
	}
	return -1
}

func TestContent(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	for range 2000 {
		rec := newRecord(extents.Bytes(1+r.IntN(40))*1024, extents.Bytes(2+r.IntN(3))*4096, 4096, [16]byte{})
		l := extents.Layout{Size: rec.Size()}
		phys := extents.Bytes(1 << 20)
		for at := extents.Bytes(0); at < l.Size; {
			n := min(extents.Bytes(1+r.IntN(20))*1024, l.Size-at)
			l.Extents = append(l.Extents, extents.Extent{Logical: at, Physical: phys, Length: n})
			at, phys = at+n, phys+n+1<<20
		}
		l.Extents[len(l.Extents)-1].Flags = extents.FlagLast
		before := slices.Clone(l.Extents)
		got, err := Content(l, rec)
		if err != nil {
			t.Fatal(err)
		}
		if p := got.Problems(1024, 0); len(p) > 0 || got.Size != rec.Payload {
			t.Fatalf("%+v of %+v: %v", got, rec, p)
		}
		if !slices.Equal(before, l.Extents) {
			t.Fatal("Content changed its argument")
		}
		for at := extents.Bytes(0); at < rec.Payload; at += 512 {
			from := at
			if at < rec.Prologue {
				from = rec.Moved + at
			}
			if where(got, at) != where(l, from) {
				t.Fatalf("byte %d of %+v is at %d, want %d", at, rec, where(got, at), where(l, from))
			}
		}
	}
}

func TestContentRefuses(t *testing.T) {
	rec := newRecord(8*4096, 8192, 4096, [16]byte{})
	whole := rows(rec.Size(), [3]bytesT{0, 1 << 20, rec.Size()})
	if _, err := Content(whole, rec); err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]extents.Layout{
		"another size":           rows(rec.Size()+4096, [3]bytesT{0, 1 << 20, rec.Size() + 4096}),
		"hole in the payload":    rows(rec.Size(), [3]bytesT{0, 1 << 20, 12288}, [3]bytesT{16384, 2 << 20, rec.Size() - 16384}),
		"hole in the moved page": rows(rec.Size(), [3]bytesT{0, 1 << 20, rec.Moved + 4096}, [3]bytesT{rec.Moved + 8192, 2 << 20, 4096}),
		"empty":                  {Size: rec.Size()},
	} {
		if got, err := Content(l, rec); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestSwapPhysical(t *testing.T) {
	rec := newRecord(64*4096, 8192, 4096, [16]byte{})
	swap, err := SwapPhysical(rows(rec.Size(), [3]bytesT{0, 1 << 20, rec.Size()}), rec)
	want := []extents.Extent{{Physical: 1 << 20, Length: 4096}, {Physical: 1 << 20, Length: 4096}, {Logical: 4096, Physical: 1<<20 + 4096, Length: 4096}}
	if err != nil || !slices.Equal(swap, want) {
		t.Errorf("%+v, %v", swap, err)
	}
	// The same image on blocks off the page: slot 1 is in the content.
	l := rows(rec.Size(), [3]bytesT{0, 1<<20 + 1024, rec.Size()})
	var out *SlotOutsideError
	if _, err := SwapPhysical(l, rec); !errors.As(err, &out) || out.Slot != 1 || out.Problem().Rule != extents.Unpinnable {
		t.Errorf("error %v", err)
	}
	shown, err := Content(l, rec)
	if err != nil {
		t.Fatal(err)
	}
	at, err := SlotRange(l, 4096, 1)
	if err != nil {
		t.Fatal(err)
	}
	if Disjoint(shown, []extents.Extent{at}) == nil {
		t.Error("no overlap seen")
	}
	for _, s := range []extents.Extent{{Physical: 0, Length: 1 << 20}, {Physical: 2 << 30, Length: 4096}} {
		if err := Disjoint(shown, []extents.Extent{s}); err != nil {
			t.Error(err)
		}
	}
}
