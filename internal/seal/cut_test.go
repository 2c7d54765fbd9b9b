package seal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"dmloop/extents"
)

// Page sizes of the kernel that seals in these tests, and of another one.
const (
	testPage  = 4096
	otherPage = 65536
)

// image returns reproducible bytes.
func image(size int, seed uint64) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func changeOf(s *cutStore) change {
	return change{store: s, page: testPage, said: s.bare, bare: s.bare, written: s.bare, layout: s.layout}
}

// content returns what the image shows, in whatever whole state it is.
func content(t *testing.T, s *cutStore) []byte {
	t.Helper()
	st, err := inspect(s, testPage, s.bare)
	if err != nil {
		t.Fatal(err)
	}
	switch st.Kind {
	case Plain:
		return s.now
	case Sealed:
		r := st.Record
		b := bytes.Clone(s.now[:r.Payload])
		copy(b, s.now[r.Moved:r.Moved+r.Kept()])
		return b
	}
	t.Fatalf("state is %v: %s", st.Kind, st.Reason)
	return nil
}

// shapes are images that differ in how their prologue lies.
var shapes = []struct {
	name string
	size int
	base extents.Bytes
	runs []extents.Bytes

	fixed, bare bool
}{
	{"page-aligned blocks", 5 * testPage, 1 << 20, nil, false, false},
	{"blocks off the page", 5*testPage + 1024, 1<<20 + 1024, nil, false, false},
	{"two pages and a block", 2*testPage + 1024, 1<<20 + 1024, nil, false, false},
	{"one block", 1024, 1<<20 + 3072, nil, false, false},
	{"grown in pieces", 2 * testPage, 1<<20 + 1024, []extents.Bytes{testPage, testPage, 3 * 1024, 1024}, false, false},
	{"first run of no whole page", 9 * testPage, 1<<20 + 1024, []extents.Bytes{5 * 1024, 6 * 1024}, false, false},
	{"pinned", 9 * testPage, 1 << 20, nil, true, false},
	{"no attributes", 5*testPage + 512, 1<<20 + 1024, nil, false, true},
}

// cuts calls f with every state that a cut before operation n of run may leave
// that is worth a look: nothing of what was not synced arrived, all of it,
// each sector alone, all but one, and some at random.
func cuts(s *cutStore, r *rand.Rand, f func(*cutStore)) {
	for sizes := range len(s.sizes) + 1 {
		for attrs := range len(s.attrs) + 1 {
			cut := func(sector func(int) bool) { f(s.after(part{sector, sizes, attrs}, r)) }
			cut(none)
			cut(all)
			for i := range s.data {
				if len(s.data) > 64 && i%7 != 0 {
					continue // a long run of pages: enough of them
				}
				cut(func(k int) bool { return k == i })
				cut(func(k int) bool { return k != i })
				cut(func(k int) bool { return k <= i })
			}
			for range 16 {
				cut(func(int) bool { return r.Uint32()&1 == 0 })
			}
		}
	}
}

// A change is cut before each of its operations, every state that this may leave
// is recovered by Seal and by Unseal, by that with another kernel's pages too, and
// recovery is cut as well.
func TestPowerCut(t *testing.T) {
	for _, shape := range shapes {
		for _, start := range []string{"seal", "unseal", "unseal elsewhere", "seal grown", "unseal grown"} {
			if strings.HasSuffix(start, "grown") && shape.name != "blocks off the page" {
				continue // one shape will do
			}
			t.Run(shape.name+"/"+start, func(t *testing.T) {
				want := image(shape.size, 7)
				fresh := func() *cutStore {
					s := newCutStore(want)
					s.base, s.runs, s.fixed, s.bare = shape.base, shape.runs, shape.fixed, shape.bare
					if s.bare {
						s.block = sectorSize
					}
					return s
				}
				begin := fresh()
				if start != "seal" {
					want = sealAndUse(t, begin)
				}
				if strings.HasSuffix(start, "grown") {
					begin.now = append(begin.now, make([]byte, 10000)...)
					begin = begin.clone()
				}
				points, kinds := 0, map[Kind]int{}
				r := rand.New(rand.NewPCG(1, 2))
				for n := 0; ; n++ {
					s := begin.clone()
					s.cutAt = n
					err := run(s, start)
					if !errors.Is(err, errCut) {
						if err != nil {
							t.Fatal(err)
						}
						break
					}
					cuts(s, r, func(left *cutStore) {
						points++
						kinds[recoverBoth(t, left, want, fmt.Sprintf("%s cut at %d", start, n), r)]++
					})
				}
				t.Logf("%d points: %v", points, kinds)
				if points < 200 && start != "seal grown" {
					t.Errorf("only %d points", points)
				}
			})
		}
	}
}

func run(s *cutStore, what string) error {
	if strings.HasPrefix(what, "seal") {
		_, err := changeOf(s).seal()
		return err
	}
	c := changeOf(s)
	if strings.HasSuffix(what, "elsewhere") {
		c.page = otherPage
	}
	return c.unseal()
}

// sealAndUse seals an image and changes its first pages as a mapping does, and
// the rest of its prologue as the kernel may. It returns the new content.
func sealAndUse(t *testing.T, s *cutStore) []byte {
	t.Helper()
	rec, err := changeOf(s).seal()
	if err != nil {
		t.Fatal(err)
	}
	copy(s.now[rec.Moved:], image(int(rec.Kept()), 11))
	copy(s.now[testPage:rec.Prologue], image(int(rec.Prologue)-testPage, 13))
	if err := s.sync(); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(content(t, s))
}

// recoverBoth finishes a cut image both ways, with a further cut in a random
// place, and returns the state that the first cut had left.
func recoverBoth(t *testing.T, left *cutStore, want []byte, what string, r *rand.Rand) Kind {
	t.Helper()
	st, err := inspect(left, testPage, left.bare)
	if err != nil {
		t.Fatal(err)
	}
	if st.Kind != Plain && st.Kind != Sealed && st.Kind != HalfSealed {
		t.Fatalf("%s: state is %v: %s", what, st.Kind, st.Reason)
	}
	for _, finish := range []string{"seal", "unseal", "unseal elsewhere"} {
		s := left.clone()
		for {
			s.cutAt, s.ops = r.IntN(24), 0
			err := run(s, finish)
			if err == nil {
				break
			}
			if now, ierr := inspect(s, testPage, s.bare); ierr == nil && finish != "seal" && now.Looks != "" && refusedBy(err) == extents.SealCorrupt {
				break // it is plain, or was before the cut
			}
			if !errors.Is(err, errCut) {
				t.Fatalf("%s, %s: %v", what, finish, err)
			}
			s = s.after(part{func(int) bool { return r.Uint32()&1 == 0 }, r.IntN(len(s.sizes) + 1), r.IntN(len(s.attrs) + 1)}, r)
		}
		// What is reported as done is durable.
		s = s.after(part{none, 0, 0}, r)
		end, err := inspect(s, testPage, s.bare)
		if err != nil || end.Kind != map[string]Kind{"seal": Sealed, "unseal": Plain, "unseal elsewhere": Plain}[finish] {
			t.Fatalf("%s, %s: state is %v (%s), %v", what, finish, end.Kind, end.Reason, err)
		}
		if end.Kind == Sealed {
			provesDisjoint(t, s, end.Record)
		}
		var mark []byte
		if end.Kind == Sealed && !s.bare {
			mark = end.Record.Encode()
		}
		if end.Kind == Sealed && end.Record.Written != s.bare {
			t.Fatalf("%s, %s: the record says written: %v", what, finish, end.Record.Written)
		}
		if !bytes.Equal(s.attr, mark) {
			t.Fatalf("%s, %s: the attribute is %x, want %x", what, finish, s.attr, mark)
		}
		if got := content(t, s); !bytes.Equal(got, want) {
			t.Fatalf("%s, %s: content of %d bytes differs, want %d", what, finish, len(got), len(want))
		}
	}
	return st.Kind
}

// refusedBy returns the rule by which an image was refused, or "".
func refusedBy(err error) extents.Rule {
	var refused *extents.Refusal
	if errors.As(err, &refused) {
		return refused.Problems[0].Rule
	}
	return ""
}

// provesDisjoint checks what map checks of a sealed image before it is mapped.
func provesDisjoint(t *testing.T, s *cutStore, rec Record) {
	t.Helper()
	l, _ := s.layout()
	swap, err := SwapPhysical(l, rec)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := Content(l, rec)
	if err != nil {
		t.Fatal(err)
	}
	if err := Disjoint(shown, swap); err != nil {
		t.Fatal(err)
	}
}

// Whatever operation fails, seal leaves the file what it was, or in a state that
// both commands finish.
func TestFailingOperation(t *testing.T) {
	full := errors.New("no space left on device")
	for _, start := range []string{"seal", "unseal"} {
		for n := 0; ; n++ {
			want := image(3*testPage, 7)
			s := newCutStore(want)
			s.base = 1<<20 + 1024
			if start == "unseal" {
				want = sealAndUse(t, s)
			}
			seen, first := 0, ""
			s.fail = func(op string) error {
				if seen++; seen == n+1 {
					first = op
					return full
				}
				return nil
			}
			err := run(s, start)
			if first == "" {
				break
			}
			if !errors.Is(err, full) {
				t.Fatalf("%s with operation %d (%s) failing: %v", start, n, first, err)
			}
			s.fail = nil
			if err := s.sync(); err != nil {
				t.Fatal(err)
			}
			if st, _ := inspect(s, testPage, s.bare); start == "seal" && n < 5 && st.Kind != Plain {
				t.Errorf("seal with operation %d (%s) failing left %v", n, first, st.Kind)
			}
			recoverBoth(t, s, want, fmt.Sprintf("%s, operation %d (%s) failed", start, n, first), rand.New(rand.NewPCG(5, 6)))
		}
	}
}
