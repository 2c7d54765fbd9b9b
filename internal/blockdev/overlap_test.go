package blockdev_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
)

func mapping(t *testing.T, name, text string) blockdev.Mapping {
	t.Helper()
	table, err := dmtable.ParseText(text)
	if err != nil {
		t.Fatal(err)
	}
	return blockdev.Mapping{Name: name, Table: table}
}

func TestOverlaps(t *testing.T) {
	segs := []dmtable.Segment{{Device: vda1, Start: 1000, Length: 100}, {Device: vdb, Start: 0, Length: 10}, {Device: vda1, Start: 500, Length: 50}}
	tests := []struct {
		name, table string
		want        string // offset+length in sectors
	}{
		{"elsewhere", "0 100 linear 254:1 900\n100 400 linear 254:1 1100\n500 100 linear 254:2 1000\n600 8 linear 254:16 10", ""},
		{"the same", "0 100 linear 254:1 1000", "0+100"},
		{"one sector at the end", "0 100 linear 254:1 1099", "99+1"},
		{"one sector at the start", "0 100 linear 254:1 901", "0+1"},
		{"within", "0 10 linear 254:1 1050", "50+10"},
		{"around two", "0 1000 linear 254:1 500", "0+100 110+50"},
		{"second row", "0 8 linear 254:2 0\n8 8 linear 254:16 8", "108+2"},
		{"two rows side by side", "0 10 linear 254:1 1000\n10 10 linear 254:1 1010", "0+20"},
		{"stripes", "0 20 striped 2 5 254:16 5 254:1 1095", "95+5 105+5"},
		{"error target", "0 100 error", ""},
		{"another target", "0 100 crypt aes 0 254:16 4096", "100+10"},
		{"another target elsewhere", "0 100 crypt aes 0 254:2 4096", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			problems, err := blockdev.Overlaps(segs, 0, []blockdev.Mapping{mapping(t, "other", test.table)})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range problems {
				got = append(got, fmt.Sprintf("%d+%d", p.Offset/sector, p.Length/sector))
				if p.Rule != extents.Overlap || !strings.Contains(p.Message, "other") || p.Remedy != advice.UnmapOther.Of("other") {
					t.Errorf("%+v", p)
				}
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("got %v, want %s", problems, test.want)
			}
		})
	}
	if _, err := blockdev.Overlaps(segs, 0, []blockdev.Mapping{mapping(t, "odd", "0 8 linear /dev/sda 0")}); err == nil || !strings.Contains(err.Error(), "odd") {
		t.Errorf("a row that is not understood: %v", err)
	}
	if problems, err := blockdev.Overlaps(nil, 0, []blockdev.Mapping{mapping(t, "x", "0 8 linear 254:1 0")}); err != nil || problems != nil {
		t.Error(problems, err)
	}
}

// TestOverlapsAgainstModel compares with a sector-by-sector model: the sectors of
// the file that the problems cover are those that another mapping has too.
func TestOverlapsAgainstModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	for round := range 500 {
		var segs []dmtable.Segment
		at := dmtable.Sectors(r.IntN(20))
		for range 1 + r.IntN(8) { // ours do not overlap one another
			seg := dmtable.Segment{Device: vda1, Start: at, Length: dmtable.Sectors(1 + r.IntN(20))}
			at = seg.End() + dmtable.Sectors(r.IntN(20))
			segs = append(segs, seg)
		}
		r.Shuffle(len(segs), func(i, j int) { segs[i], segs[j] = segs[j], segs[i] })
		taken := map[dmtable.Sectors]bool{}
		var others []blockdev.Mapping
		for i := range r.IntN(4) {
			var pieces []dmtable.Segment
			for range 1 + r.IntN(4) {
				seg := dmtable.Segment{Device: vda1, Start: dmtable.Sectors(r.IntN(200)), Length: dmtable.Sectors(1 + r.IntN(30))}
				for s := seg.Start; s < seg.End(); s++ {
					taken[s] = true
				}
				pieces = append(pieces, seg)
			}
			table, err := dmtable.Build(pieces)
			if err != nil {
				t.Fatal(err)
			}
			others = append(others, blockdev.Mapping{Name: fmt.Sprint("m", i), Table: table})
		}
		problems, err := blockdev.Overlaps(segs, 0, others)
		if err != nil {
			t.Fatal(err)
		}
		if len(problems) > 10 { // the last one sums up the rest
			continue
		}
		covered := map[extents.Bytes]bool{}
		for _, p := range problems {
			for o := p.Offset; o < p.Offset+p.Length; o += sector {
				covered[o/sector] = true
			}
		}
		offset := extents.Bytes(0)
		for _, seg := range segs {
			for s := seg.Start; s < seg.End(); s++ {
				if taken[s] != covered[offset] {
					t.Fatalf("seed %d, round %d: sector %d: taken %v, covered %v\nours %v\nothers %v\n%v", seed, round, s, taken[s], covered[offset], segs, others, problems)
				}
				offset++
			}
		}
	}
}

// Of a layout that begins somewhere in the file, the message names the file's bytes,
// as offset and length do.
func TestOverlapsFromAnOffset(t *testing.T) {
	segs := []dmtable.Segment{{Device: vda1, Start: 64, Length: 8}}
	problems, err := blockdev.Overlaps(segs, 1<<20, []blockdev.Mapping{mapping(t, "other", fmt.Sprintf("0 8 linear %s 68", vda1))})
	if err != nil || len(problems) != 1 {
		t.Fatalf("%v, %v", problems, err)
	}
	if p := problems[0]; p.Offset != 1<<20+4*512 || p.Length != 4*512 || !strings.HasPrefix(p.Message, "bytes 1050624 to 1052671: ") {
		t.Errorf("%+v", p)
	}
}
