package seal

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/advice"
)

// sealed returns a sealed image and its record.
func sealed(t *testing.T, size int) (*cutStore, Record) {
	t.Helper()
	s := newCutStore(image(size, 5))
	s.base = 1 << 20
	r, err := changeOf(s).seal()
	if err != nil {
		t.Fatal(err)
	}
	return s, r
}

func TestInspect(t *testing.T) {
	zeros := func(n int) *cutStore { return newCutStore(make([]byte, n)) }
	with := func(s *cutStore, edit func(s *cutStore)) *cutStore { edit(s); return s }
	good, rec := sealed(t, 9*1024)
	intent := rec
	intent.Phase, intent.Sum = PhaseSealing, 1
	for _, c := range []struct {
		name   string
		s      *cutStore
		kind   Kind
		rule   extents.Rule
		reason string
	}{
		{"empty", zeros(0), Plain, "", ""},
		{"a byte", zeros(1), Plain, "", ""},
		{"zeros", zeros(1 << 20), Plain, "", ""},
		{"sealed", good, Sealed, "", ""},
		{"swap area of others", with(zeros(1<<20), func(s *cutStore) { copy(s.now[4086:], signature) }), Plain, "", ""},
		{"hibernated", with(zeros(1<<20), func(s *cutStore) { copy(s.now[4086:], "S1SUSPEND\x00") }), Plain, "", ""},
		{"sealed by its content alone", with(good.clone(), func(s *cutStore) { s.nowAt = nil }), Plain, "", ""},
		{"damaged, by its content alone", with(good.clone(), func(s *cutStore) { s.nowAt = nil; s.now[40] ^= 1 }), Plain, "", ""},
		{"record damaged", with(good.clone(), func(s *cutStore) { s.now[40] ^= 1 }), Corrupt, extents.SealCorrupt, "the attribute says that bytes 0 to 8191 were moved to 28672"},
		{"record and trailer damaged", with(good.clone(), func(s *cutStore) { s.now[40] ^= 1; clear(s.now[len(s.now)-512:]) }), Corrupt, extents.SealCorrupt, "checksum"},
		{"swap header damaged", with(good.clone(), func(s *cutStore) { s.now[4090] ^= 1; clear(s.now[len(s.now)-512:]) }), Corrupt, extents.SealCorrupt, "signature"},
		{"trailer damaged, which nobody reads", with(good.clone(), func(s *cutStore) { clear(s.now[len(s.now)-512:]) }), Sealed, "", ""},
		{"cut", with(good.clone(), func(s *cutStore) { s.now = s.now[:len(s.now)-4096] }), Corrupt, extents.SealCorrupt, "this one has"},
		{"grown", with(good.clone(), func(s *cutStore) { s.now = append(s.now, make([]byte, 4096)...) }), HalfSealed, extents.SealCorrupt, "made longer"},
		{"grown, with an intent", with(good.clone(), func(s *cutStore) { s.now = append(s.now, make([]byte, 4096)...); s.nowAt = intent.Encode() }), Corrupt, extents.SealCorrupt, "replaced"},
		{"made swap by mkswap, content used since", with(good.clone(), func(s *cutStore) { clear(s.now[:1024]); s.now[rec.Moved] ^= 1 }), Corrupt, extents.SealCorrupt, "the attribute says"},
		{"attribute of rubbish", with(good.clone(), func(s *cutStore) { s.nowAt = []byte("x") }), Corrupt, extents.SealCorrupt, Attribute},
		{"empty attribute", with(good.clone(), func(s *cutStore) { s.nowAt = []byte{} }), Corrupt, extents.SealCorrupt, Attribute},
		{"attribute of another sealing", with(good.clone(), func(s *cutStore) { r := rec; r.UUID[0]++; s.nowAt = r.Encode() }), Corrupt, extents.SealCorrupt, "two different"},
		{"another image written to the file", with(zeros(36*1024), func(s *cutStore) { s.nowAt = rec.Encode() }), Corrupt, extents.SealCorrupt, "page 0"},
		{"attribute of another image", with(good.clone(), func(s *cutStore) { r := intent; r.UUID[0]++; s.nowAt = r.Encode() }), Corrupt, extents.SealCorrupt, "two different"},
		{"attribute on a smaller file", with(zeros(8*1024), func(s *cutStore) { s.nowAt = intent.Encode() }), Corrupt, extents.SealCorrupt, "replaced"},
		{"attribute on a larger file", with(zeros(1<<20), func(s *cutStore) { s.nowAt = intent.Encode() }), Corrupt, extents.SealCorrupt, "replaced"},
		{"attribute on other content", with(zeros(36*1024), func(s *cutStore) { s.nowAt = intent.Encode() }), Corrupt, extents.SealCorrupt, "changed since"},
		{"intent to unseal, content written since through a mapping", with(good.clone(), func(s *cutStore) { s.nowAt = intent.Encode(); s.now[rec.Moved] ^= 1 }), HalfSealed, extents.SealCorrupt, "cut"},
	} {
		st, err := inspect(c.s, testPage, false)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		p, bad := st.Problem()
		if st.Kind != c.kind || p.Rule != c.rule || bad != (c.rule != "") || !strings.Contains(st.Reason, c.reason) {
			t.Errorf("%s: %v, %s (%s), want %v %s (%s)", c.name, st.Kind, p.Rule, st.Reason, c.kind, c.rule, c.reason)
		}
		if bad && p.Message == "" {
			t.Errorf("%s: no message", c.name)
		}
		// What is neither plain, sealed nor half-way is refused and not written to.
		if c.kind == Corrupt {
			before := c.s.clone()
			_, sealErr := changeOf(c.s).seal()
			for _, err := range []error{sealErr, changeOf(c.s).unseal(), changeOf(c.s).adopt()} {
				var refused *extents.Refusal
				if !errors.As(err, &refused) || refused.Problems[0] != p {
					t.Errorf("%s: %v", c.name, err)
				}
			}
			if !bytes.Equal(before.now, c.s.now) || !bytes.Equal(before.nowAt, c.s.nowAt) {
				t.Errorf("%s: the file was written to", c.name)
			}
		}
	}
}

// Whoever goes on to use an image as a plain one, after a cut that nobody saw, is told how
// to say so; who has changed a longer one is not.
func TestHintForImageInUse(t *testing.T) {
	const size = 9 * 1024
	_, rec := sealed(t, size)
	rec.Phase, rec.Sum = PhaseUnsealing, 1
	for _, c := range []struct {
		size int
		to   extents.Remedy
	}{{size, advice.DropMark.Of(Attribute)}, {36 * 1024, extents.Remedy{}}} {
		s := newCutStore(make([]byte, c.size))
		s.nowAt = rec.Encode()
		st, err := inspect(s, testPage, false)
		if err != nil {
			t.Fatal(err)
		}
		if p, bad := st.Problem(); !bad || st.Kind != Corrupt || p.Remedy != c.to {
			t.Errorf("%d bytes: %v, %v instead of %v", c.size, st.Kind, p.Remedy, c.to)
		}
	}
}

// What another kernel sealed is refused by all but unseal, for which it makes no
// difference. A cut of that is in TestPowerCut.
func TestOtherPageSize(t *testing.T) {
	s, rec := sealed(t, 1<<20)
	want := content(t, s)
	st, err := inspect(s, otherPage, false)
	if err != nil || st.Kind != OtherPageSize || st.Record != rec {
		t.Fatalf("%+v, %v", st, err)
	}
	if p, bad := st.Problem(); !bad || p.Rule != extents.Unpinnable || !strings.Contains(p.Message, "4096") || p.Remedy != advice.SealForThisKernel {
		t.Errorf("%+v", p)
	}
	c := change{store: s, page: otherPage, layout: s.layout}
	if _, err := c.seal(); refusedBy(err) != extents.Unpinnable {
		t.Errorf("seal: %v", err)
	}
	if err := c.unseal(); err != nil || !bytes.Equal(s.now, want) || s.nowAt != nil {
		t.Errorf("unseal: %v, attribute %x", err, s.nowAt)
	}
	if again, err := c.seal(); err != nil || again.PageSize != otherPage {
		t.Errorf("sealed again: %+v, %v", again, err)
	}
}

func TestSealTwiceUnsealTwice(t *testing.T) {
	s, rec := sealed(t, 9*1024)
	ops := s.ops
	again, err := changeOf(s).seal()
	if err != nil || again != rec || s.ops != ops {
		t.Errorf("second seal: %+v, %v, %d operations", again, err, s.ops-ops)
	}
	if err := changeOf(s).unseal(); err != nil || !bytes.Equal(s.now, image(9*1024, 5)) {
		t.Errorf("unseal: %v", err)
	}
	ops = s.ops
	if err := changeOf(s).unseal(); err != nil || s.ops != ops {
		t.Errorf("second unseal: %v, %d operations", err, s.ops-ops)
	}
}

func TestSealRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		s    *cutStore
		rule extents.Rule
	}{
		{"empty", &cutStore{cutAt: -1, block: 4096}, extents.Empty},
		{"size off the block", &cutStore{cutAt: -1, block: 4096, now: make([]byte, 9*1024), base: 1 << 20}, extents.SizeUnaligned},
		{"size off the sector", &cutStore{cutAt: -1, block: 1, now: make([]byte, 9*1024+100), base: 1 << 20}, extents.SizeUnaligned},
		{"blocks larger than pages", &cutStore{cutAt: -1, block: 16384, now: make([]byte, 65536), base: 1 << 20}, extents.Unpinnable},
		{"never written", &cutStore{cutAt: -1, block: 4096, now: make([]byte, 65536), base: 1 << 20, flags: extents.FlagUnwritten}, extents.Unwritten},
		{"shared", &cutStore{cutAt: -1, block: 4096, now: make([]byte, 65536), base: 1 << 20, flags: extents.FlagShared}, extents.Shared},
		{"more than 1 MiB in small pieces", &cutStore{cutAt: -1, block: 1024, now: make([]byte, 2<<20), base: 1<<20 + 1024, runs: slivers(1500)}, extents.Unpinnable},
		{"short and in small pieces", &cutStore{cutAt: -1, block: 1024, now: make([]byte, 9*1024), base: 1<<20 + 1024, runs: slivers(5000)}, extents.Unpinnable},
	} {
		before := bytes.Clone(c.s.now)
		_, err := changeOf(c.s).seal()
		var refused *extents.Refusal
		if !errors.As(err, &refused) || refused.Problems[0].Rule != c.rule || refused.Problems[0].Message == "" {
			t.Errorf("%s: %v, want %s", c.name, err, c.rule)
		}
		if p := refused.Problems[0]; p.Rule == extents.SizeUnaligned && (p.Length == 0 || p.Offset+p.Length != extents.Bytes(len(before))) {
			t.Errorf("%s: bytes %d+%d", c.name, p.Offset, p.Length)
		}
		if !bytes.Equal(before, c.s.now) || c.s.nowAt != nil {
			t.Errorf("%s: the file is not what it was", c.name)
		}
	}
}

// slivers returns n runs of 1 KiB, none of which holds a whole page.
func slivers(n int) []extents.Bytes {
	out := make([]extents.Bytes, n)
	for i := range out {
		out[i] = 1024
	}
	return out
}

// A disk that does not keep what was written to it is found out before the only
// good copy is written over.
func TestWriteLost(t *testing.T) {
	s := newCutStore(image(9*1024, 5))
	s.base = 1 << 20
	lying := lossy{s}
	if _, err := (change{store: lying, page: testPage, layout: s.layout}).seal(); err == nil {
		t.Fatal("no error")
	}
	if !bytes.Equal(s.now, image(9*1024, 5)) || s.nowAt != nil {
		t.Error("the file is not what it was")
	}
}

// lossy writes zeros in place of long writes.
type lossy struct{ *cutStore }

func (s lossy) write(off extents.Bytes, p []byte) error {
	if len(p) > testPage {
		p = make([]byte, len(p))
	}
	return s.cutStore.write(off, p)
}

// A seal of before is told once that every byte was written; then nothing is left to do.
func TestSealWritten(t *testing.T) {
	want := image(5*testPage, 3)
	s := newCutStore(want)
	s.base = 1 << 20
	if _, err := changeOf(s).seal(); err != nil {
		t.Fatal(err)
	}
	for _, again := range []bool{true, false} {
		s.ops = 0
		c := changeOf(s)
		c.written = true
		r, err := c.seal()
		if err != nil || !r.Written || (s.ops > 0) != again {
			t.Fatalf("%+v, %v, %d operations", r, err, s.ops)
		}
		if st, err := inspect(s, testPage, false); err != nil || st.Kind != Sealed || st.Record != r || !bytes.Equal(content(t, s), want) {
			t.Fatalf("%+v, %v", st, err)
		}
	}
	if r, err := changeOf(s).seal(); err != nil || !r.Written { // and is not forgotten
		t.Errorf("%+v, %v", r, err)
	}
}

// What would be longer than a file can be is refused before anything is written.
func TestSealTooLong(t *testing.T) {
	s := newCutStore(image(5*testPage, 3))
	s.base = 1 << 20
	c := changeOf(s)
	c.most = 9 * testPage // moved to the seventh page at least, two of them, and one more
	if _, err := c.seal(); refusedBy(err) != extents.Unpinnable || s.ops > 0 {
		t.Errorf("%v, %d operations", err, s.ops)
	}
	var refused *extents.Refusal
	if _, err := c.seal(); errors.As(err, &refused) && refused.Problems[0].Remedy.Way != advice.LongerFiles.Way {
		t.Errorf("%+v", refused.Problems[0])
	}
	c.most = 10 * testPage
	if _, err := c.seal(); err != nil {
		t.Error(err)
	}
}
