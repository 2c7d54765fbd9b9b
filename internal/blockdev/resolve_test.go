package blockdev_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/blockdev"
)

const sector = dmtable.SectorSize

// layout makes a layout of (physical, length) pairs in sectors.
func layout(pairs ...extents.Bytes) extents.Layout {
	var l extents.Layout
	for i := 0; i < len(pairs); i += 2 {
		e := extents.Extent{Logical: l.Size, Physical: pairs[i] * sector, Length: pairs[i+1] * sector}
		l.Extents = append(l.Extents, e)
		l.Size += e.Length
	}
	return l
}

func stackOf(t testing.TB, block extents.Bytes, sizes map[dmtable.Device]dmtable.Sectors, text string) blockdev.Stack {
	t.Helper()
	table, err := dmtable.ParseText(text)
	if err != nil {
		t.Fatal(err)
	}
	s := blockdev.Stack{Host: shim, HostName: "host", HostTable: table}
	for dev, size := range sizes {
		s.Base = append(s.Base, blockdev.Base{Device: dev, Size: size, LogicalBlock: block})
	}
	return s
}

func TestResolve(t *testing.T) {
	sizes := map[dmtable.Device]dmtable.Sectors{vda2: 204800, vdb: 4194304}
	const twoSegments = "0 8192 linear 254:2 2048\n8192 16384 linear 254:16 4096"
	const stripes = "0 32736 striped 2 24 254:16 100000 254:2 100000"
	tests := []struct {
		name, table string
		layout      extents.Layout
		want        string
	}{
		{"in the first segment", twoSegments, layout(0, 8), "[254:2 sectors 2048-2055]"},
		{"in the last sector of the first", twoSegments, layout(8191, 1), "[254:2 sectors 10239-10239]"},
		{"in the first sector of the second", twoSegments, layout(8192, 1), "[254:16 sectors 4096-4096]"},
		{"across the border", twoSegments, layout(8190, 4), "[254:2 sectors 10238-10239 254:16 sectors 4096-4097]"},
		{"up to the end", twoSegments, layout(24568, 8), "[254:16 sectors 20472-20479]"},
		{"adjacent extents", twoSegments, layout(0, 8, 8, 8), "[254:2 sectors 2048-2063]"},
		{"backwards", twoSegments, layout(8, 8, 0, 8), "[254:2 sectors 2056-2063 254:2 sectors 2048-2055]"},
		{"within a chunk", stripes, layout(8, 8), "[254:16 sectors 100008-100015]"},
		{"three chunks", stripes, layout(16, 40), "[254:16 sectors 100016-100023 254:2 sectors 100000-100023 254:16 sectors 100024-100031]"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := stackOf(t, 512, sizes, test.table)
			segs, problems := s.Resolve(test.layout, 0)
			if problems != nil || fmt.Sprint(segs) != test.want {
				t.Errorf("got %v, %v, want %s", segs, problems, test.want)
			}
		})
	}
}

func TestResolveRefuses(t *testing.T) {
	sizes := map[dmtable.Device]dmtable.Sectors{vda2: 204800, vdb: 4194304}
	const table = "0 8192 linear 254:2 2048\n8192 16384 linear 254:16 4096"
	ragged := func(physical, length extents.Bytes) extents.Layout {
		return extents.Layout{Size: 4096 + length, Extents: []extents.Extent{
			{Logical: 0, Physical: 0, Length: 4096}, {Logical: 4096, Physical: physical, Length: length}}}
	}
	tests := []struct {
		name   string
		table  string
		block  extents.Bytes
		layout extents.Layout
		rule   extents.Rule
		offset extents.Bytes
		length extents.Bytes
	}{
		{"start within a sector", table, 512, ragged(8192+256, 4096), extents.NotAligned, 4096, 4096},
		{"end within a sector", table, 512, ragged(8192, 4096+1), extents.NotAligned, 4096, 4097},
		{"start within a block", table, 4096, ragged(8192+512, 4096), extents.NotAligned, 4096, 4096},
		{"base start within a block", "0 24576 linear 254:2 2049", 4096, layout(0, 8, 8, 8), extents.NotAligned, 0, 8192},
		{"chunk within a block", "0 24 striped 2 3 254:2 0 254:16 0", 4096, layout(0, 8), extents.NotAligned, 0, 1536},
		{"beyond the host", table, 512, layout(0, 8, 24572, 8), extents.OutOfRange, 4096 + 4*512, 4 * 512},
		{"far beyond the host", table, 512, layout(0, 8, 1<<50, 8), extents.OutOfRange, 4096, 4096},
		{"after a base", "0 24576 linear 254:2 204796", 512, layout(0, 4, 4, 4), extents.OutOfRange, 2048, 2048},
		{"behind one stripe", "0 96 striped 2 24 254:16 0 254:2 204776", 512, layout(0, 96), extents.OutOfRange, 72 * 512, 24 * 512},
		{"unnamed base", "0 24576 linear 8:1 0", 512, layout(0, 8), extents.OutOfRange, 0, 4096},
		{"host with a gap", "0 8 linear 254:2 0\n16 8 linear 254:2 0", 512, layout(0, 8), extents.UnresolvableStack, 0, 0},
		{"host with another target", "0 8 zero", 512, layout(0, 8), extents.UnresolvableStack, 0, 0},
		{"no host table", "", 512, layout(0, 8), extents.UnresolvableStack, 0, 0},
		{"gap", table, 512, extents.Layout{Size: 8192, Extents: []extents.Extent{{Logical: 0, Length: 2048}, {Logical: 4096, Length: 4096}}}, extents.Hole, 2048, 2048},
		{"short", table, 512, extents.Layout{Size: 8192, Extents: []extents.Extent{{Logical: 0, Length: 4096}}}, extents.Hole, 4096, 4096},
		{"not from 0", table, 512, extents.Layout{Size: 8192, Extents: []extents.Extent{{Logical: 4096, Length: 4096}}}, extents.Hole, 0, 4096},
		{"empty", table, 512, extents.Layout{}, extents.Hole, 0, 0},
		{"overlap", table, 512, extents.Layout{Size: 8192, Extents: []extents.Extent{{Logical: 0, Length: 4096}, {Logical: 2048, Length: 6144}}}, extents.Unknown, 4096, 0},
		{"length 0", table, 512, extents.Layout{Size: 8192, Extents: []extents.Extent{{Logical: 0, Length: 0}}}, extents.Unknown, 0, 0},
		{"negative length", table, 512, extents.Layout{Size: 8192, Extents: []extents.Extent{{Logical: 0, Length: -1}}}, extents.Unknown, 0, 0},
		{"negative address", table, 512, extents.Layout{Size: 8192, Extents: []extents.Extent{{Physical: -512, Length: 8192}}}, extents.Unknown, 0, 0},
		{"longer than the file", table, 512, extents.Layout{Size: 8192, Extents: []extents.Extent{{Length: 16384}}}, extents.Unknown, 0, 0},
		{"largest", table, 512, extents.Layout{Size: 1<<63 - 1, Extents: []extents.Extent{{Physical: 1<<63 - 512, Length: 1<<63 - 512}, {Logical: 1<<63 - 512, Physical: 0, Length: 511}}}, extents.OutOfRange, 0, 1<<63 - 512},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := stackOf(t, test.block, sizes, test.table)
			segs, problems := s.Resolve(test.layout, 0)
			if len(problems) == 0 {
				t.Fatalf("got %v", segs)
			}
			p := problems[max(slices.IndexFunc(problems, func(p extents.Problem) bool { return p.Rule == test.rule }), 0)]
			if p.Rule != test.rule || p.Offset != test.offset || p.Length != test.length || p.Message == "" {
				t.Errorf("got %+v, want %s at %d+%d", problems, test.rule, test.offset, test.length)
			}
		})
	}
}

// TestResolveAgainstModel compares Resolve with a sector-by-sector model that is
// written down from drivers/md/dm-stripe.c, on random tables and layouts.
func TestResolveAgainstModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	for round := range 300 {
		table, model := randomHost(r)
		s := blockdev.Stack{HostTable: table}
		for _, dev := range []dmtable.Device{vda1, vda2, vdb} {
			s.Base = append(s.Base, blockdev.Base{Device: dev, Size: 1 << 30, LogicalBlock: 512})
		}
		size := extents.Bytes(table.Size())
		var pairs []extents.Bytes
		for range 1 + r.IntN(20) {
			start := extents.Bytes(r.Int64N(int64(size)))
			pairs = append(pairs, start, 1+extents.Bytes(r.Int64N(int64(size-start))))
		}
		l := layout(pairs...)
		segs, problems := s.Resolve(l, 0)
		if problems != nil {
			t.Fatalf("seed %d, round %d: %v", seed, round, problems)
		}
		i, used := 0, dmtable.Sectors(0)
		for _, e := range l.Extents {
			for at := e.Physical / sector; at < (e.Physical+e.Length)/sector; at++ {
				dev, want := model(dmtable.Sectors(at))
				if segs[i].Device != dev || segs[i].Start+used != want {
					t.Fatalf("seed %d, round %d: sector %d lies at %v %d, want %v %d in\n%s", seed, round, at, segs[i].Device, segs[i].Start+used, dev, want, table)
				}
				if used++; used == segs[i].Length {
					i, used = i+1, 0
				}
			}
		}
		if i != len(segs) {
			t.Fatalf("seed %d, round %d: %d segments too many", seed, round, len(segs)-i)
		}
	}
}

// randomHost returns a host table and a function that says where a sector lies.
func randomHost(r *rand.Rand) (dmtable.Table, func(dmtable.Sectors) (dmtable.Device, dmtable.Sectors)) {
	devices := []dmtable.Device{vda1, vda2, vdb}
	type place struct {
		dev   dmtable.Device
		start dmtable.Sectors
	}
	var table dmtable.Table
	var places []place
	for range 1 + r.IntN(6) {
		start := dmtable.Sectors(len(places))
		if r.IntN(2) == 0 {
			dev, base, length := devices[r.IntN(3)], r.Uint64N(1<<20), 1+r.IntN(200)
			table = append(table, dmtable.Row{Start: start, Length: dmtable.Sectors(length), Target: "linear", Args: fmt.Sprintf("%v %d", dev, base)})
			for i := range length {
				places = append(places, place{dev, dmtable.Sectors(base) + dmtable.Sectors(i)})
			}
			continue
		}
		stripes, chunk, chunks := 1+r.IntN(3), 1+r.IntN(20), 1+r.IntN(5)
		args := fmt.Sprintf("%d %d", stripes, chunk)
		starts := make([]uint64, stripes)
		for i := range starts {
			starts[i] = r.Uint64N(1 << 20)
			args += fmt.Sprintf(" %v %d", devices[i], starts[i])
		}
		length := stripes * chunk * chunks
		table = append(table, dmtable.Row{Start: start, Length: dmtable.Sectors(length), Target: "striped", Args: args})
		for sector := range length { // stripe_map_sector
			number, offset := sector/chunk, sector%chunk
			stripe := number % stripes
			number /= stripes
			places = append(places, place{devices[stripe], dmtable.Sectors(starts[stripe]) + dmtable.Sectors(number*chunk+offset)})
		}
	}
	return table, func(s dmtable.Sectors) (dmtable.Device, dmtable.Sectors) { return places[s].dev, places[s].start }
}

func TestResolveTooMany(t *testing.T) {
	sizes := map[dmtable.Device]dmtable.Sectors{vda2: 1 << 40, vdb: 1 << 40}
	s := stackOf(t, 512, sizes, "0 1099511627776 striped 2 1 254:2 0 254:16 0")
	segs, problems := s.Resolve(layout(0, dmtable.MaxRows), 0)
	if len(segs) != dmtable.MaxRows || problems != nil {
		t.Errorf("%d segments, %v", len(segs), problems)
	}
	segs, problems = s.Resolve(layout(0, 1<<39), 0)
	if segs != nil || len(problems) != 1 || problems[0].Rule != extents.TooManyExtents || problems[0].Offset != dmtable.MaxRows*sector {
		t.Errorf("%d segments, %v", len(segs), problems)
	}
}

func TestResolveManyProblems(t *testing.T) {
	s := stackOf(t, 4096, map[dmtable.Device]dmtable.Sectors{vda2: 1 << 30}, "0 1073741824 linear 254:2 0")
	var pairs []extents.Bytes
	for i := range extents.Bytes(10_000) {
		pairs = append(pairs, i*64+1, 8, i*64+16, 8)
	}
	_, problems := s.Resolve(layout(pairs...), 0)
	if len(problems) != 11 || problems[10].Rule != extents.NotAligned || !strings.HasPrefix(problems[10].Message, "and 9990 more such places, ") {
		t.Errorf("%d problems, the last one %+v", len(problems), problems[len(problems)-1])
	}
}

func BenchmarkResolve(b *testing.B) {
	for name, text := range map[string]string{
		"linear":  "0 2147483648 linear 254:2 2048",
		"segs":    "0 1073741824 linear 254:2 2048\n1073741824 1073741824 linear 254:16 2048",
		"striped": "0 2147483648 striped 2 128 254:2 2048 254:16 2048",
	} {
		b.Run(name, func(b *testing.B) {
			s := stackOf(b, 512, map[dmtable.Device]dmtable.Sectors{vda2: 1 << 40, vdb: 1 << 40}, text)
			pairs := make([]extents.Bytes, 0, 2_000_000)
			for i := range extents.Bytes(1_000_000) {
				pairs = append(pairs, i*2048%2147483648+i%8*16, 8)
			}
			l := layout(pairs...)
			b.ReportAllocs()
			for b.Loop() {
				if _, problems := s.Resolve(l, 0); problems != nil {
					b.Fatal(problems)
				}
			}
		})
	}
}
