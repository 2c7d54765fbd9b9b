package extents

import (
	"errors"
	"math"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A fakeMap answers as ioctl_fibmap does: a block that is not in it is a hole.
type fakeMap struct {
	at    map[int32]int32
	calls int
}

func (f *fakeMap) ask(block int32) (int32, error) {
	f.calls++
	if f.at[block] == math.MaxInt32 {
		return 0, unix.ERANGE
	}
	return f.at[block], nil
}

// run maps blocks [from,from+n) to the addresses from at on.
func (f *fakeMap) run(from, n, at int32) *fakeMap {
	for i := range n {
		f.at[from+i] = at + i
	}
	return f
}

func newFakeMap() *fakeMap { return &fakeMap{at: map[int32]int32{}} }

func TestBlockMap(t *testing.T) {
	const unit = 512
	row := func(logical, physical, length Bytes, flags Flags) Extent {
		return Extent{Logical: logical * unit, Physical: physical * unit, Length: length * unit, Flags: flags}
	}
	beyond := newFakeMap().run(0, 8, 100)
	beyond.at[3] = math.MaxInt32
	for name, c := range map[string]struct {
		m       *fakeMap
		cluster Bytes
		size    Bytes
		want    []Extent
	}{
		"nothing":                    {newFakeMap(), 8, 0, nil},
		"only a hole":                {newFakeMap(), 8, 4096, nil},
		"one piece":                  {newFakeMap().run(0, 64, 1000), 8, 64 * unit, []Extent{row(0, 1000, 64, FlagLast)}},
		"two pieces":                 {newFakeMap().run(0, 8, 1000).run(8, 8, 2000), 8, 16 * unit, []Extent{row(0, 1000, 8, 0), row(8, 2000, 8, FlagLast)}},
		"backwards":                  {newFakeMap().run(0, 8, 1008).run(8, 8, 1000), 8, 16 * unit, []Extent{row(0, 1008, 8, 0), row(8, 1000, 8, FlagLast)}},
		"clusters of one block":      {newFakeMap().run(0, 3, 7).run(3, 1, 90), 1, 4 * unit, []Extent{row(0, 7, 3, 0), row(3, 90, 1, FlagLast)}},
		"end within a cluster":       {newFakeMap().run(0, 16, 1000), 8, 10*unit - 7, []Extent{row(0, 1000, 10, FlagLast)}},
		"a hole between":             {newFakeMap().run(0, 8, 1000).run(16, 8, 1016), 8, 24 * unit, []Extent{row(0, 1000, 8, 0), row(16, 1016, 8, FlagLast)}},
		"a cluster that is no piece": {newFakeMap().run(0, 4, 1000).run(4, 4, 3000), 8, 8 * unit, []Extent{row(0, 1000, 4, 0), row(4, 3000, 4, FlagLast)}},
		"a hole at its end":          {newFakeMap().run(0, 4, 1000), 8, 8 * unit, []Extent{row(0, 1000, 4, FlagLast)}},
		"an address that does not fit": {beyond, 1, 8 * unit,
			[]Extent{row(0, 100, 3, 0), row(3, 0, 1, FlagUnknown), row(4, 104, 4, FlagLast)}},
	} {
		m := blockMap{unit: unit, cluster: c.cluster * unit, ask: c.m.ask}
		if got, err := readRows(c.size, m.walk); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, c.want)
		}
		l := Layout{Size: c.size, Extents: c.want}
		if same, err := sameRows(l, m.walk); err != nil || !same {
			t.Errorf("%s: read again: %v, %v", name, same, err)
		}
	}
}

// Many pieces come in batches, none is lost or cut where one batch ends, and two calls are
// made for each cluster.
func TestBlockMapBatches(t *testing.T) {
	const clusters = 3*batchRows + 5
	f := newFakeMap()
	for i := range int32(clusters) {
		f.run(i*8, 8, 1000+i*16)
	}
	f.run(batchRows*8, 8, 1000+(batchRows-1)*16+8) // goes on where the first batch is full
	m := blockMap{unit: 512, cluster: 4096, ask: f.ask}
	batches := 0
	var rows []Extent
	err := m.walk(clusters*4096, func(batch []Extent, done Bytes) error {
		batches++
		if done != batch[len(batch)-1].end() || len(batch) > batchRows {
			t.Errorf("a batch of %d rows, done %d", len(batch), done)
		}
		rows = append(rows, batch...)
		return nil
	})
	if err != nil || len(rows) != clusters-1 || batches < 3 || f.calls != 2*clusters {
		t.Fatalf("%d rows in %d batches, %d calls, %v", len(rows), batches, f.calls, err)
	}
	if p := (Layout{Size: clusters * 4096, Extents: rows}).Problems(512, 0); len(p) > 0 {
		t.Error(p)
	}
	enough := errors.New("enough")
	if err := m.walk(clusters*4096, func([]Extent, Bytes) error { return enough }); !errors.Is(err, enough) {
		t.Error(err)
	}
}

// What FIBMAP has no number for is unknown, and so refused; it is not asked for.
func TestBlockMapOfTooManyBlocks(t *testing.T) {
	m := blockMap{unit: 1 << 20, cluster: 1 << 50}
	// Two clusters of 2^30 blocks, and a hundred blocks more than there are numbers.
	m.ask = func(block int32) (int32, error) {
		if block < 0 {
			t.Fatal("asked for a block below 0")
		}
		if block < 1<<30 {
			return block + 1, nil
		}
		return block - 1<<30 + 5, nil
	}
	size := (mostBlocks + 100) << 20
	rows, err := readRows(size, m.walk)
	if err != nil || len(rows) != 3 || rows[2].Flags != FlagUnknown|FlagLast || rows[2].Length != 100<<20 {
		t.Fatalf("%v, %v", rows, err)
	}
	refused := errors.New("refused")
	m.ask = func(int32) (int32, error) { return 0, refused }
	if _, err := readRows(4096<<20, m.walk); !errors.Is(err, refused) {
		t.Error(err)
	}
}
