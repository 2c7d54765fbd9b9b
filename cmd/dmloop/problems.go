package main

import (
	"fmt"
	"slices"

	"dmloop/extents"
)

// fewPlaces is how many places of one rule people read; --verbose shows all that are listed.
const fewPlaces = 3

// problemLine is a broken rule as people read it. A hint stands after the last of the lines
// that it is for.
type problemLine struct{ text, hint string }

// problemLines puts the problems of an image into lines, with each hint once.
func problemLines(image string, problems []extents.Problem, all bool) []problemLine {
	var lines []problemLine
	for len(problems) > 0 {
		first, n := problems[0], 1
		for n < len(problems) && problems[n].Rule == first.Rule && problems[n].Remedy == first.Remedy {
			n++
		}
		one := problems[:n]
		problems = problems[n:]
		if rest := one[min(fewPlaces, n):]; len(rest) > 1 && !all && !slices.ContainsFunc(rest, noPlace) {
			one = append(one[:fewPlaces:fewPlaces], summed(rest))
		}
		for _, p := range one {
			lines = append(lines, problemLine{text: p.String()})
		}
		lines[len(lines)-1].hint = problemHint(image, first)
	}
	return lines
}

// noPlace reports whether a problem is about the whole file: its words are its own, and
// no sum says them.
func noPlace(p extents.Problem) bool { return p.Length == 0 && p.Places == 0 }

// summed is one problem that stands for several of one rule.
func summed(problems []extents.Problem) extents.Problem {
	sum := problems[0]
	sum.Places, sum.Total = 0, 0
	for _, p := range problems {
		if p.Places > 0 {
			sum.Places, sum.Total = sum.Places+p.Places, sum.Total+p.Total
		} else {
			sum.Places, sum.Total = sum.Places+1, sum.Total+p.Length
		}
	}
	sum.Message = extents.SumUp(sum.Places, sum.Total, sum.Offset)
	return sum
}

// countOf says how many problems there are, those that are only summed up included.
func countOf(problems []extents.Problem) string {
	n := 0
	for _, p := range problems {
		n += max(p.Places, 1)
	}
	return plural(n, "problem")
}

// printProblems prints lines of problems with a prefix each.
func (e *cliEnv) printProblems(image string, problems []extents.Problem) {
	for _, l := range problemLines(image, problems, e.verbose) {
		fmt.Fprintf(e.stderr, "dmloop: %s: %s\n", printable(image), printable(l.text))
		printHint(e, l.hint)
	}
}
