package blockdev

import (
	"fmt"
	"strings"

	"dmloop/extents"
	"dmloop/internal/advice"
)

// mostProblems bounds how many problems of one call are listed one by one.
const mostProblems = 64

// problems collects problems with offsets; stretches that adjoin and have the same
// thing wrong are one problem, and a long list is cut short by a last one that
// counts the rest.
type problems struct {
	found []finding
	more  int
}

type finding struct {
	rule           extents.Rule
	offset, length extents.Bytes
	what           string // the end of "bytes A-B ..."
	remedy         extents.Remedy
}

// remedies are what to do about rules that are judged elsewhere for other reasons.
var remedies = map[extents.Rule]extents.Remedy{extents.NotAligned: advice.LargerBlocks}

func (p *problems) add(rule extents.Rule, offset, length extents.Bytes, what string) {
	p.addRemedy(rule, offset, length, what, remedies[rule])
}

func (p *problems) addRemedy(rule extents.Rule, offset, length extents.Bytes, what string, remedy extents.Remedy) {
	if n := len(p.found); n > 0 {
		last := &p.found[n-1]
		if last.rule == rule && last.what == what && last.offset+last.length == offset {
			last.length += length
			return
		}
		if n == mostProblems {
			p.more++
			return
		}
	}
	p.found = append(p.found, finding{rule, offset, length, what, remedy})
}

// list returns what was collected, nil when there is nothing.
func (p *problems) list() []extents.Problem {
	var list []extents.Problem
	for i, f := range p.found {
		message := place(f.offset, f.length) + f.what
		if i == mostProblems-1 && p.more > 0 {
			message += fmt.Sprintf(" (and %d more places)", p.more)
		}
		list = append(list, extents.Problem{Rule: f.rule, Offset: f.offset, Length: f.length, Message: message, Remedy: f.remedy})
	}
	return list
}

// place is how a message begins.
func place(offset, length extents.Bytes) string {
	return fmt.Sprintf("bytes %d-%d ", offset, offset+length-1)
}

// Shift moves the problems that Resolve or Overlaps found in a layout which begins at
// byte by of the file, their messages too.
func Shift(problems []extents.Problem, by extents.Bytes) []extents.Problem {
	for i := range problems {
		p := &problems[i]
		what, placed := strings.CutPrefix(p.Message, place(p.Offset, p.Length))
		p.Offset += by
		if placed {
			p.Message = place(p.Offset, p.Length) + what
		}
	}
	return problems
}
