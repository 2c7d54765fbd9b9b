package seal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"dmloop/extents"
)

// A process killed between two operations leaves the file as it then was; a copy
// of it without the attribute is recovered by what is in the file alone, once somebody
// has said that it is sealed.
func TestCopyWithoutAttribute(t *testing.T) {
	for _, shape := range shapes {
		if shape.bare {
			continue // there is none
		}
		for _, start := range []string{"seal", "unseal"} {
			want := image(shape.size, 7)
			begin := newCutStore(want)
			begin.base, begin.runs = shape.base, shape.runs
			if start == "unseal" {
				want = sealAndUse(t, begin)
			}
			r := rand.New(rand.NewPCG(3, 4))
			for n := 0; ; n++ {
				s := begin.clone()
				s.cutAt = n
				if err := run(s, start); err == nil {
					break
				}
				s.nowAt = nil
				s = s.clone()
				adopted(t, s)
				recoverBoth(t, s, want, fmt.Sprintf("%s: copy of %s cut at %d", shape.name, start, n), r)
				if start == "unseal" {
					continue
				}
				// The same with page 0 torn in the middle, which it cannot be
				// any more when the trailer says that the image is sealed.
				last, _ := Decode(s.now[max(0, len(s.now)-sectorSize):])
				if st, _ := inspect(s, testPage, true); (st.Kind == Sealed || st.moved) && last.Phase == PhaseSealing {
					for sectors := range 8 {
						torn := s.clone()
						end := min(testPage, len(want))
						copy(torn.now[min(sectors*sectorSize, end):end], want[min(sectors*sectorSize, end):])
						torn.disk = bytes.Clone(torn.now)
						adopted(t, torn)
						recoverBoth(t, torn, want, fmt.Sprintf("%s: torn copy of %s cut at %d", shape.name, start, n), r)
					}
				}
			}
		}
	}
}

// adopted marks what by its content is sealed or half-way, and checks that nothing but
// the attribute changes and that without it the image counts as content.
func adopted(t *testing.T, s *cutStore) {
	t.Helper()
	s.nowAt, s.attr = nil, nil
	said, err := inspect(s, testPage, true)
	if err != nil {
		t.Fatal(err)
	}
	alone, err := inspect(s, testPage, false)
	if err != nil || alone.Kind != Plain || (alone.Looks == "") != (said.Kind == Plain) {
		t.Fatalf("without the attribute: %v, %q, %v", alone.Kind, alone.Looks, err)
	}
	before, c := bytes.Clone(s.now), changeOf(s)
	c.said = true
	err = c.adopt()
	if said.Kind == Plain {
		if refusedBy(err) != extents.Unsealed || s.nowAt != nil {
			t.Fatalf("adopting a plain image: %v", err)
		}
		return
	}
	if err != nil || !bytes.Equal(before, s.now) || !bytes.Equal(s.nowAt, said.Record.Encode()) {
		t.Fatalf("adopting an image that is %v: %v, attribute %x", said.Kind, err, s.nowAt)
	}
	if got, err := inspect(s, testPage, false); err != nil || got.Kind != said.Kind || got.Record != said.Record {
		t.Fatalf("adopted: %+v, %v, want %+v", got, err, said)
	}
	ops := s.ops
	if err := c.adopt(); err != nil || s.ops != ops {
		t.Fatalf("adopted again: %v, %d operations", err, s.ops-ops)
	}
}

// What an image holds is content, also when it is a sealed image or a swap area to the
// byte: it is sealed, used and made plain again whatever is cut where.
func TestContentThatLooksSealed(t *testing.T) {
	inner, _ := sealed(t, 9*1024)
	half := inner.clone() // its trailer alone says so
	clear(half.now[:testPage])
	r, _ := Decode(half.now[len(half.now)-sectorSize:])
	r.Phase, r.Sum = PhaseSealing, checksum(half.now[:r.Kept()])
	copy(half.now[len(half.now)-sectorSize:], r.Encode())
	damaged := inner.clone()
	damaged.now[60] ^= 1
	swapArea := image(10*testPage, 3)
	copy(swapArea[testPage-len(signature):], signature)
	for name, want := range map[string][]byte{"sealed": inner.now, "half-way": half.now, "damaged": damaged.now, "swap": swapArea} {
		t.Run(name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(7, 8))
			for _, start := range []string{"seal", "unseal"} {
				begin := newCutStore(want)
				begin.base = 1 << 20
				if st, err := inspect(begin, testPage, false); err != nil || st.Kind != Plain || (st.Looks == "") != (name == "swap") {
					t.Fatalf("%v, looks %q, %v", st.Kind, st.Looks, err)
				}
				if start == "unseal" {
					if _, err := changeOf(begin).seal(); err != nil {
						t.Fatal(err)
					}
				}
				for n := 0; ; n++ {
					s := begin.clone()
					s.cutAt = n
					if err := run(s, start); !errors.Is(err, errCut) {
						if err != nil {
							t.Fatal(err)
						}
						break
					}
					cuts(s, random, func(left *cutStore) {
						recoverBoth(t, left, want, fmt.Sprintf("%s cut at %d", start, n), random)
					})
				}
			}
		})
	}
}
