package main

import (
	"fmt"
	"math"
	"strings"
)

// The pictures are bars: one to a line, with its name before it and its figure after it.
const (
	barLeft   = 190 // pixels for the name
	barRoom   = 420 // pixels of the longest
	barStep   = 26
	barHeight = 16
	pageWidth = barLeft + barRoom + 150
)

// picture begins an SVG that reads well on a light and on a dark page.
func picture(b *strings.Builder, title string, lines int) {
	height := 60 + lines*barStep
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">
<style>text{fill:#222}.page{fill:#fff}.ours{fill:#2a6fbb}.other{fill:#9aa5b1}.kernel{fill:#163d66}@media(prefers-color-scheme:dark){text{fill:#ddd}.page{fill:#16181c}.kernel{fill:#8db8e8}}</style>
<rect class="page" width="%d" height="%d"/>
<text x="16" y="28" font-size="15" font-weight="bold">%s</text>
`, pageWidth, height, pageWidth, height, pageWidth, height, title)
}

func bar(b *strings.Builder, line int, class, name string, share float64, text string) {
	y := 48 + line*barStep
	width := math.Max(1, share*barRoom)
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect class="%s" x="%d" y="%d" width="%.1f" height="%d"/><text x="%.1f" y="%d">%s</text>
`, barLeft-10, y+barHeight-3, name, class, barLeft, y, width, barHeight, barLeft+width+8, y+barHeight-3, text)
}

// requestPicture shows what one small request costs on each way.
func requestPicture(r result) string {
	var b strings.Builder
	picture(&b, "Instructions a random read of 4 KiB, Linux "+r.Release, len(ways))
	most := 0.0
	for _, w := range ways {
		f, _ := r.find(manyReads + w)
		most = math.Max(most, f.value())
	}
	for i, w := range ways {
		f, _ := r.find(manyReads + w)
		class, name := "other", w
		if w == onMapped {
			class, name = "ours", "dmloop"
		}
		bar(&b, i, class, name, f.value()/most, f.String())
	}
	return b.String() + "</svg>\n"
}

// mapPicture shows how long map takes by the number of extents, and the kernel's share of that.
// The lengths are logarithms: from a millisecond to ten seconds.
func mapPicture(r result) string {
	var b strings.Builder
	picture(&b, "Time of map by extents, and what its ioctls take of it (dark), Linux "+r.Release+"; logarithmic", 4)
	length := func(us float64) float64 { return math.Min(1, math.Max(0.01, math.Log10(us/1000)/4)) }
	for i, n := range []int{1, 1000, 10_000, 100_000} {
		whole, _ := r.find(fmt.Sprintf("map, %d extents", n))
		kernel, _ := r.find(fmt.Sprintf("map, %d extents: its ioctls", n))
		bar(&b, i, "ours", fmt.Sprintf("%d", n), length(whole.value()),
			fmt.Sprintf("%.1f ms, %.1f in the kernel", whole.value()/1000, kernel.value()/1000))
		fmt.Fprintf(&b, `<rect class="kernel" x="%d" y="%d" width="%.1f" height="6"/>
`, barLeft, 48+i*barStep+5, length(kernel.value())*barRoom)
	}
	return b.String() + "</svg>\n"
}
