package main

import (
	"slices"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/advice"
)

// Many places of one rule are a few lines and one hint; nothing of what is counted gets lost.
func TestProblemLines(t *testing.T) {
	layout := extents.Layout{Size: 100 * 8192}
	for i := range extents.Bytes(100) {
		layout.Extents = append(layout.Extents, extents.Extent{Logical: i * 8192, Physical: 1<<20 + i*8192, Length: 4096})
	}
	layout.Extents[99].Flags = extents.FlagLast
	holes := layout.Problems(4096, 0)
	seal := extents.Problem{Rule: extents.Unsealed, Message: "unsealed", Remedy: advice.Seal}
	for name, c := range map[string]struct {
		problems []extents.Problem
		all      bool
		lines    int
		want     []string // lines that there are
		count    string
	}{
		"none":             {nil, false, 0, nil, "0 problems"},
		"one":              {holes[:1], false, 1, []string{"bytes 4096 to 8191: no block is allocated (hole) | dmloop provision x"}, "1 problem"},
		"four":             {holes[:4], false, 4, []string{"bytes 4096 to 8191: no block is allocated (hole) | "}, "4 problems"},
		"many":             {append(slices.Clone(holes), seal), false, 5, []string{"and 97 more such places, 397312 bytes in all, from byte 28672 (hole) | dmloop provision x", "unsealed (unsealed) | dmloop seal x"}, "101 problems"},
		"many, all listed": {holes, true, 11, []string{"and 90 more such places, 368640 bytes in all, from byte 86016 (hole) | dmloop provision x"}, "100 problems"},
		"different hints": {[]extents.Problem{{Rule: extents.Overlap, Message: "a", Remedy: advice.UnmapOther.Of("a")}, {Rule: extents.Overlap, Message: "b", Remedy: advice.UnmapOther.Of("b")}}, false, 2,
			[]string{"a (overlap) | unmap the other one first: dmloop unmap a", "b (overlap) | unmap the other one first: dmloop unmap b"}, "2 problems"},
		"whole file": {slices.Repeat([]extents.Problem{{Rule: extents.Overlap, Message: "device x", Remedy: advice.RemoveDevice.Of("x")}}, 6), false, 6,
			[]string{"device x (overlap) | see: dmsetup table x; remove it first: dmsetup remove x"}, "6 problems"},
	} {
		var lines []string
		hints := 0
		for _, l := range problemLines("x", c.problems, c.all) {
			lines = append(lines, l.text+" | "+l.hint)
			if l.hint == "dmloop provision x" {
				hints++
			}
		}
		if len(lines) != c.lines || hints > 1 || countOf(c.problems) != c.count {
			t.Errorf("%s: %d lines, %d hints of one kind, %s:\n%s", name, len(lines), hints, countOf(c.problems), strings.Join(lines, "\n"))
		}
		for _, want := range c.want {
			if !slices.Contains(lines, want) {
				t.Errorf("%s: %q is not in\n%s", name, want, strings.Join(lines, "\n"))
			}
		}
	}
	if before := layout.Problems(4096, 0); len(before) != 11 || before[3] != holes[3] {
		t.Error("printing changed the problems")
	}
}
