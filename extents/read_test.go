package extents

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// kernel answers FIEMAP calls from a list of rows as a file system does.
type kernel struct {
	rows  []Extent
	calls int
}

func (k *kernel) call(buf []byte) error {
	k.calls++
	start := Bytes(binary.NativeEndian.Uint64(buf))
	from := slices.IndexFunc(k.rows, func(e Extent) bool { return e.end() > start })
	if from < 0 {
		from = len(k.rows)
	}
	encodeReply(buf, k.rows[from:])
	return nil
}

func plainRows(n int) []Extent {
	rows := make([]Extent, n)
	for i := range rows {
		rows[i] = Extent{Logical: Bytes(i) * 4096, Physical: Bytes(i)*8192 + 4096, Length: 4096}
	}
	if n > 0 {
		rows[n-1].Flags = FlagLast
	}
	return rows
}

func TestReadRowsInBatches(t *testing.T) {
	for _, n := range []int{0, 1, 2, firstRows, firstRows + 1, batchRows - 1, batchRows, batchRows + 1, 2 * batchRows, 10*batchRows + 7} {
		k := &kernel{rows: plainRows(n)}
		got, err := readRows(Bytes(n)*4096, fiemapWalk(k.call))
		if err != nil || !slices.Equal(got, k.rows) {
			t.Errorf("%d rows: got %d rows, %v", n, len(got), err)
		}
		if most := 1 + max(0, (n-firstRows+batchRows-1)/batchRows); k.calls > most {
			t.Errorf("%d rows took %d calls, want at most %d", n, k.calls, most)
		}
	}
}

// Rows beyond the end of the file are read too: they may be in one batch with the
// last row, or fill batches of their own.
func TestReadRowsBehindTheEnd(t *testing.T) {
	k := &kernel{rows: plainRows(3 * batchRows)}
	got, err := readRows(10*4096, fiemapWalk(k.call))
	if err != nil || len(got) != firstRows+batchRows || !slices.Equal(got, k.rows[:len(got)]) {
		t.Errorf("got %d rows, %v, want %d", len(got), err, firstRows+batchRows)
	}
	if problems := (Layout{Size: 10 * 4096, Extents: got}).Problems(4096, 0); len(problems) != 0 {
		t.Errorf("problems: %v", problems)
	}
}

func TestReadRowsOfLiars(t *testing.T) {
	t.Run("never ends", func(t *testing.T) {
		size, calls := Bytes(1<<20), 0
		_, err := readRows(size, fiemapWalk(func(buf []byte) error {
			calls++
			start := Bytes(binary.NativeEndian.Uint64(buf))
			encodeReply(buf, []Extent{{start, 4096, 4096, 0}})
			return nil
		}))
		if err != nil || calls > int(size/4096)+2 {
			t.Errorf("%d calls, %v", calls, err)
		}
	})
	t.Run("no progress", func(t *testing.T) {
		rows, err := readRows(1<<20, fiemapWalk(func(buf []byte) error {
			encodeReply(buf, []Extent{{0, 4096, 4096, 0}})
			return nil
		}))
		if err == nil {
			t.Errorf("got %v, want an error", rows)
		}
	})
	t.Run("empty rows", func(t *testing.T) {
		if rows, err := readRows(1<<20, fiemapWalk(func(buf []byte) error {
			encodeReply(buf, []Extent{{0, 0, 0, 0}})
			return nil
		})); err == nil {
			t.Errorf("got %v, want an error", rows)
		}
	})
	t.Run("backwards inside a batch", func(t *testing.T) {
		rows := []Extent{{8192, 8192, 4096, 0}, {0, 4096, 4096, 0}, {4096, 40960, 8192, FlagLast}}
		got, err := readRows(12288, fiemapWalk(func(buf []byte) error {
			encodeReply(buf, rows)
			return nil
		}))
		if err != nil || !slices.Equal(got, rows) {
			t.Errorf("rows were not kept as they came: %v, %v", got, err)
		}
	})
	t.Run("error on the second call", func(t *testing.T) {
		k := &kernel{rows: plainRows(2 * batchRows)}
		rows, err := readRows(1<<30, fiemapWalk(func(buf []byte) error {
			if k.calls == 1 {
				return unix.EIO
			}
			return k.call(buf)
		}))
		if !errors.Is(err, unix.EIO) || rows != nil {
			t.Errorf("got %d rows, %v", len(rows), err)
		}
	})
}

// TestReadErrors holds the contract that an errno can be found in what Read returns.
func TestReadErrors(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Read(f); !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("Read of a FIFO: %v, want ENOTTY or EOPNOTSUPP", err)
	}
	f.Close()
	if _, err := Read(f); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read of a closed file: %v", err)
	}
}

func TestEachBatch(t *testing.T) {
	k := &kernel{rows: plainRows(2*batchRows + 5)}
	size := Bytes(len(k.rows)) * 4096
	var got []Extent
	err := eachBatch(size, k.call, func(rows []Extent, done Bytes) error {
		got = append(got, rows...)
		if end := rows[len(rows)-1].end(); done != end {
			t.Errorf("a batch reaches byte %d, not %d", done, end)
		}
		return nil
	})
	if err != nil || !slices.Equal(got, k.rows) {
		t.Errorf("%d rows, %v", len(got), err)
	}
	enough := errors.New("enough")
	k.calls = 0
	err = eachBatch(size, k.call, func([]Extent, Bytes) error { return enough })
	if !errors.Is(err, enough) || k.calls != 1 {
		t.Errorf("after an error: %d calls, %v", k.calls, err)
	}
}

// TestEachAhead reads a batch while another is looked at, which the race detector watches.
func TestEachAhead(t *testing.T) {
	k := &kernel{rows: plainRows(5*batchRows + 5)}
	size := Bytes(len(k.rows)) * 4096
	var got []Extent
	collect := func(rows []Extent) error { got = append(got, rows...); return nil }
	read, refused := eachAhead(size, fiemapWalk(k.call), collect)
	if read != nil || refused != nil || !slices.Equal(got, k.rows) {
		t.Errorf("%d rows, %v, %v", len(got), read, refused)
	}
	enough := errors.New("enough")
	k.calls, got = 0, nil
	_, refused = eachAhead(size, fiemapWalk(k.call), func(rows []Extent) error {
		got = append(got, rows...)
		return enough
	})
	if refused != enough || k.calls > 2 || len(got) != firstRows {
		t.Errorf("after an error: %d calls, %d rows, %v", k.calls, len(got), refused)
	}
	broken := errors.New("broken")
	calls := 0
	got = nil
	read, refused = eachAhead(size, fiemapWalk(func(buf []byte) error {
		if calls++; calls == 3 {
			return broken
		}
		return k.call(buf)
	}), collect)
	if read != broken || refused != nil || !slices.Equal(got, k.rows[:firstRows+batchRows]) {
		t.Errorf("the kernel fails: %d rows, %v, %v", len(got), read, refused)
	}
}

func TestSameRows(t *testing.T) {
	l := Layout{Extents: plainRows(2*batchRows + 5)}
	l.Size = Bytes(len(l.Extents)) * 4096
	changed := func(i int, change func(*Extent)) []Extent {
		rows := slices.Clone(l.Extents)
		change(&rows[i])
		return rows
	}
	last := len(l.Extents) - 1
	for name, c := range map[string]struct {
		rows []Extent
		want bool
	}{
		"the same":     {l.Extents, true},
		"moved":        {changed(batchRows, func(e *Extent) { e.Physical += 4096 }), false},
		"shared":       {changed(0, func(e *Extent) { e.Flags |= FlagShared }), false},
		"fewer":        {l.Extents[:last], false},
		"one more":     {append(slices.Clone(l.Extents[:last]), Extent{Logical: l.Size - 4096, Length: 4096, Physical: l.Extents[last].Physical}, Extent{Logical: l.Size, Length: 4096, Flags: FlagLast}), false},
		"none":         {nil, false},
		"last differs": {changed(last, func(e *Extent) { e.Flags = FlagLast | FlagUnwritten }), false},
	} {
		if got, err := sameRows(l, fiemapWalk((&kernel{rows: c.rows}).call)); got != c.want || err != nil {
			t.Errorf("%s: %t, %v", name, got, err)
		}
	}
	broken := errors.New("broken")
	if _, err := sameRows(l, fiemapWalk(func([]byte) error { return broken })); !errors.Is(err, broken) {
		t.Errorf("%v instead of the kernel's error", err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if same, err := Same(f, Layout{Size: 1}); same || err != nil {
		t.Errorf("a file of another size: %t, %v", same, err)
	}
}

// What ReadLike returns is what Read does, clipped and merged, whatever is expected; and it
// is the expected one itself exactly if the two are the same.
func TestReadLike(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	like := 0
	for range 20_000 {
		var rows []Extent
		logical, physical := Bytes(0), Bytes(1<<20)
		for range r.IntN(6) {
			logical += 4096 * Bytes(r.IntN(5)/4)
			physical += 4096 * Bytes(r.IntN(3)/2)
			e := Extent{logical, physical, 4096 * Bytes(1+r.IntN(2)), Flags(r.IntN(8)/7) * FlagUnwritten}
			logical, physical = e.end(), physical+e.Length
			rows = append(rows, e)
		}
		if n := len(rows); n > 0 && r.IntN(4) > 0 {
			rows[n-1].Flags |= FlagLast
		}
		size := max(0, logical+Bytes(r.IntN(5)-3)*2048)
		all, err := readRows(size, fiemapWalk((&kernel{rows: rows}).call))
		if err != nil {
			t.Fatal(err)
		}
		want := Layout{Size: size, Extents: all}.Clip().Merge()
		expected := Layout{Size: want.Size, Extents: slices.Clone(want.Extents)}
		spoilt := r.IntN(3) == 0 && len(expected.Extents) > 0
		if spoilt {
			switch e := &expected.Extents[r.IntN(len(expected.Extents))]; r.IntN(5) {
			case 0:
				e.Physical += 512
			case 1:
				e.Length += 512
			case 2:
				e.Flags ^= FlagUnwritten
			case 3:
				expected.Extents = expected.Extents[1:]
			case 4:
				expected.Extents = append(expected.Extents, Extent{logical, physical, 512, 0})
			}
		}
		k := &kernel{rows: rows}
		got, err := readLike(size, expected, fiemapWalk(k.call))
		if err != nil || got.Size != size || !slices.Equal(got.Extents, want.Extents) {
			t.Fatalf("rows %v of %d bytes, expected %v: got %v, %v", rows, size, expected, got, err)
		}
		if same := len(got.Extents) > 0 && len(expected.Extents) > 0 && &got.Extents[0] == &expected.Extents[0]; same {
			like++
			if spoilt {
				t.Fatalf("%v was taken for %v", rows, expected)
			}
		}
	}
	if like < 7_000 {
		t.Errorf("only %d of 20000 were what was expected", like)
	}
}

func TestReadLikeSaysWhatFails(t *testing.T) {
	broken := errors.New("broken")
	if _, err := readLike(4096, Layout{Size: 4096}, fiemapWalk(func([]byte) error { return broken })); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func BenchmarkReadLike(b *testing.B) {
	k := &kernel{rows: plainRows(1000)}
	like := Layout{1000 * 4096, k.rows}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := readLike(like.Size, like, fiemapWalk(k.call)); err != nil {
			b.Fatal(err)
		}
	}
}
