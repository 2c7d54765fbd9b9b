package dmtable_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"dmloop/dmtable"
)

func table(t *testing.T, text string) dmtable.Table {
	t.Helper()
	parsed, err := dmtable.ParseText(strings.ReplaceAll(text, ", ", "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// The image lies on sectors 100-199 and 500-549 of a host whose rows are changed.
func TestStanding(t *testing.T) {
	const linear = "0 1000 linear 8:0 2048"
	ours := "0 100 linear 8:0 2148, 100 50 linear 8:0 2548"
	const stripes = "0 1024 striped 2 16 8:0 2048 8:16 4096"
	striped := "0 16 linear 8:0 2064, 16 8 linear 8:16 4112"
	const two = "0 300 linear 8:0 2048, 300 700 linear 8:16 0"
	onTwo := "0 100 linear 8:0 2148, 100 50 linear 8:16 200"
	for _, test := range []struct{ name, ours, was, now, want string }{
		{"the same", ours, linear, linear, ""},
		{"longer", ours, linear, "0 1500 linear 8:0 2048", ""},
		{"another row after it", ours, linear, linear + ", 1000 500 linear 8:32 9", ""},
		{"shorter, all of ours there", ours, linear, "0 550 linear 8:0 2048", ""},
		{"one sector too short", ours, linear, "0 549 linear 8:0 2048", "its sectors 549-549, which were 8:0 2597, are gone"},
		{"cut in two", ours, linear, "0 150 linear 8:0 2048, 150 850 linear 8:0 2198", ""},
		{"cut in two, the second elsewhere", ours, linear, "0 150 linear 8:0 2048, 150 850 linear 8:0 2199", "its sectors 150-199, which were 8:0 2198, are 8:0 2199 now"},
		{"what is before, between and after moved", ours, linear,
			"0 100 linear 8:32 0, 100 100 linear 8:0 2148, 200 300 snapshot-origin 8:32, 500 50 linear 8:0 2548, 550 450 error", ""},
		{"moved by one sector", ours, linear, "0 1000 linear 8:0 2049", "its sectors 100-199, which were 8:0 2148, are 8:0 2149 now"},
		{"another disk", ours, linear, "0 1000 linear 8:16 2048", "are 8:16 2148 now"},
		{"a snapshot's origin", ours, linear, "0 1000 snapshot-origin 253:7", "its sectors 100-199, which were 8:0 2148, are snapshot-origin 253:7 now"},
		{"an error target below the second piece", ours, linear, "0 540 linear 8:0 2048, 540 460 error", "its sectors 540-549, which were 8:0 2588, are error now"},
		{"one stripe is linear", ours, linear, "0 1024 striped 1 16 8:0 2048", ""},
		{"no table", ours, linear, "", "are gone"},
		{"two rows, the other one moved away", onTwo, two, "0 300 linear 8:0 2048, 300 100 linear 8:32 0, 400 600 linear 8:16 100", ""},
		{"two rows, ours moved", onTwo, two, "0 300 linear 8:0 2048, 300 700 linear 8:32 0", "its sectors 500-549, which were 8:16 200, are 8:32 200 now"},
		{"stripes, longer", striped, stripes, "0 2048 striped 2 16 8:0 2048 8:16 4096", ""},
		{"stripes, written as rows", striped, stripes, "0 32 linear 8:0 4096, 32 16 linear 8:0 2064, 48 976 linear 8:16 4112", ""},
		{"stripes, another chunk", striped, stripes, "0 1024 striped 2 32 8:0 2048 8:16 4096", "its sectors 32-47, which were 8:0 2064, are 8:16 4096 now"},
		{"stripes in another order", striped, stripes, "0 1024 striped 2 16 8:16 4096 8:0 2048", "which were 8:0 2064, are 8:16 4112 now"},
		{"a record that does not fit", "0 8 linear 8:99 0", linear, "0 1500 linear 8:0 2048", "0 of 8 sectors"},
		{"rows of ours that are no linear ones", "0 8 error", linear, "0 1500 linear 8:0 2048", "not understood"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := table(t, test.ours).Standing(table(t, test.was), table(t, test.now))
			if got != test.want && (test.want == "" || !strings.Contains(got, test.want)) {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

// TestStandingAgainstModel compares with a list of where each sector leads.
func TestStandingAgainstModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	same, moved := 0, 0
	for round := range 3000 {
		was := randomHost(r, 40, 0)
		now := was
		for range r.IntN(3) {
			now = changedHost(r, now)
		}
		before, after := leadsTo(t, was), leadsTo(t, now)
		var segs []dmtable.Segment
		want := true
		for range 1 + r.IntN(3) {
			at := r.IntN(len(before))
			for n := 1 + r.IntN(6); n > 0 && at < len(before); n, at = n-1, at+1 {
				segs = append(segs, before[at])
				want = want && at < len(after) && after[at] == before[at]
			}
		}
		ours, err := dmtable.Build(unique(segs))
		if err != nil {
			t.Fatal(err)
		}
		got := ours.Standing(was, now)
		if (got == "") != want {
			t.Fatalf("seed %d, round %d: %q, want the same: %v\nours\n%swas\n%snow\n%s", seed, round, got, want, ours, was, now)
		}
		if want {
			same++
		} else {
			moved++
		}
	}
	if same < 300 || moved < 300 {
		t.Errorf("%d the same, %d moved: the test shows little", same, moved)
	}
}

func unique(segs []dmtable.Segment) (list []dmtable.Segment) {
	seen := map[dmtable.Segment]bool{}
	for _, s := range segs {
		if !seen[s] {
			seen[s] = true
			list = append(list, s)
		}
	}
	return list
}

// randomHost is a host of size sectors at least, each row on an area of its own.
func randomHost(r *rand.Rand, size, from int) (host dmtable.Table) {
	at := dmtable.Sectors(from)
	for area := 0; at < dmtable.Sectors(size); area++ {
		host = append(host, randomRow(r, at, area))
		at = host[len(host)-1].End()
	}
	return host
}

func randomRow(r *rand.Rand, at dmtable.Sectors, area int) dmtable.Row {
	base := dmtable.Sectors(1000*area + r.IntN(50))
	if r.IntN(2) == 0 {
		chunk, n := dmtable.Sectors(1+r.IntN(3)), dmtable.Sectors(1+r.IntN(3))
		return dmtable.Row{Start: at, Length: 2 * chunk * n, Target: dmtable.Striped, Args: fmt.Sprintf("2 %d 8:0 %d 8:16 %d", chunk, base, base)}
	}
	return dmtable.Row{Start: at, Length: dmtable.Sectors(1 + r.IntN(12)), Target: dmtable.Linear, Args: fmt.Sprintf("8:0 %d", base)}
}

// changedHost changes one row, cuts one in two, drops the last or adds one.
func changedHost(r *rand.Rand, host dmtable.Table) dmtable.Table {
	changed := append(dmtable.Table(nil), host...)
	i := r.IntN(len(host))
	switch seg, err := host[i].Segment(); r.IntN(4) {
	case 0:
		changed[i].Target, changed[i].Args = dmtable.Linear, fmt.Sprintf("8:32 %d", r.IntN(90))
	case 1:
		if err == nil && seg.Length > 1 {
			cut := 1 + dmtable.Sectors(r.IntN(int(seg.Length-1)))
			changed[i].Length = cut
			rest := dmtable.Row{Start: host[i].Start + cut, Length: seg.Length - cut, Target: dmtable.Linear, Args: fmt.Sprint(seg.Device, " ", seg.Start+cut)}
			changed = append(append(append(dmtable.Table(nil), changed[:i+1]...), rest), host[i+1:]...)
		}
	case 2:
		if len(changed) > 1 {
			changed = changed[:len(changed)-1]
		}
	case 3:
		changed = append(changed, randomRow(r, changed.Size(), 90))
	}
	return changed
}

// leadsTo is where each sector of a host leads.
func leadsTo(t *testing.T, host dmtable.Table) (list []dmtable.Segment) {
	t.Helper()
	for _, row := range host {
		if seg, err := row.Segment(); err == nil {
			for i := range row.Length {
				list = append(list, dmtable.Segment{Device: seg.Device, Start: seg.Start + i, Length: 1})
			}
			continue
		}
		s, err := row.Stripes()
		if err != nil {
			t.Fatal(err)
		}
		for i := range row.Length {
			piece := s.Piece(i)
			piece.Length = 1
			list = append(list, piece)
		}
	}
	return list
}

func TestBegins(t *testing.T) {
	row := func(start, length dmtable.Sectors, target, args string) dmtable.Row {
		return dmtable.Row{start, length, target, args}
	}
	start := dmtable.Table{row(0, 8, dmtable.Linear, "8:0 16"), row(8, 8, dmtable.Linear, "8:0 64")}
	for name, test := range map[string]struct {
		now  dmtable.Table
		want bool
	}{
		"the same":                    {start, true},
		"one more row":                {dmtable.Table{start[0], start[1], row(16, 8, dmtable.Linear, "8:0 0")}, true},
		"the last one is longer":      {dmtable.Table{start[0], row(8, 24, dmtable.Linear, "8:0 64")}, true},
		"the last one is shorter":     {dmtable.Table{start[0], row(8, 4, dmtable.Linear, "8:0 64"), row(12, 8, dmtable.Linear, "8:0 0")}, false},
		"the last one lies elsewhere": {dmtable.Table{start[0], row(8, 24, dmtable.Linear, "8:0 65")}, false},
		"the first one is longer":     {dmtable.Table{row(0, 12, dmtable.Linear, "8:0 16"), row(12, 8, dmtable.Linear, "8:0 64")}, false},
		"the first one is another":    {dmtable.Table{row(0, 8, dmtable.Linear, "8:1 16"), start[1]}, false},
		"it ends before":              {start[:1], false},
		"nothing":                     {nil, false},
		"errors":                      {dmtable.ErrorTable(16), false},
	} {
		if got := test.now.Begins(start); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if start.Begins(nil) {
		t.Error("any table begins with none")
	}
	stripes := dmtable.Table{row(0, 256, dmtable.Striped, "2 128 8:0 0 8:1 0")}
	if (dmtable.Table{row(0, 512, dmtable.Striped, "2 128 8:0 0 8:1 0")}).Begins(stripes) { // which lie elsewhere then
		t.Error("a striped row that is longer is taken for the same")
	}
}
