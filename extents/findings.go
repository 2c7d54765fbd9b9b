package extents

import (
	"cmp"
	"fmt"
	"slices"
)

// maxListed is the number of places of one rule that are listed one by one.
const maxListed = 10

// Findings collects the places of a file that break rules. Places that touch and have the
// same thing wrong are one problem. Of each rule the first ten are listed, and one more
// problem sums up the rest, so that a file of a million holes costs no memory. The zero
// Findings is empty.
type Findings struct {
	From  Bytes // the byte of the file that the offsets of Add are counted from
	rules map[Rule]*ruleFindings
}

// finding is a stretch of the file with one problem.
type finding struct {
	offset, length Bytes
	what           string
	remedy         Remedy
}

// ruleFindings holds the first places in full and the sum of the others.
type ruleFindings struct {
	listed    []finding
	more      int   // places not listed
	moreBytes Bytes // their length
	from, end Bytes // the stretch of the file that they lie in
	last      finding
}

// Add records that length bytes from offset break the rule, with what is usual as the way
// out. what completes "bytes 0 to 4095: ".
func (f *Findings) Add(rule Rule, offset, length Bytes, what string) {
	f.AddRemedy(rule, offset, length, what, Remedy{})
}

// AddRemedy is Add with another way out.
func (f *Findings) AddRemedy(rule Rule, offset, length Bytes, what string, remedy Remedy) {
	offset += f.From
	if f.rules == nil {
		f.rules = map[Rule]*ruleFindings{}
	}
	r := f.rules[rule]
	switch {
	case r == nil:
		r = &ruleFindings{}
		f.rules[rule] = r
	case r.last.what == what && r.last.remedy == remedy && r.last.offset+r.last.length == offset:
		r.last.length += length
		return
	default:
		r.flush()
	}
	r.last = finding{offset, length, what, remedy}
}

// flush puts the last place, which can no longer grow, among the others.
func (r *ruleFindings) flush() {
	if len(r.listed) < maxListed {
		r.listed = append(r.listed, r.last)
		return
	}
	if r.more == 0 {
		r.from = r.last.offset
	}
	r.more++
	r.moreBytes += r.last.length
	r.end = max(r.end, r.last.offset+r.last.length)
}

// Problems closes the collection and returns what was found, by rule and offset; nil when
// that is nothing.
func (f *Findings) Problems() []Problem {
	var problems []Problem
	for _, m := range meanings {
		r := f.rules[m.Rule]
		if r == nil {
			continue
		}
		r.flush()
		slices.SortStableFunc(r.listed, func(a, b finding) int { return cmp.Compare(a.offset, b.offset) })
		for _, l := range r.listed {
			problems = append(problems, Problem{Rule: m.Rule, Offset: l.offset, Length: l.length,
				Message: fmt.Sprintf("%s: %s", span(l.offset, l.length), l.what), Remedy: l.remedy})
		}
		if r.more > 0 {
			problems = append(problems, Problem{Rule: m.Rule, Offset: r.from, Length: r.end - r.from, Places: r.more, Total: r.moreBytes,
				Message: SumUp(r.more, r.moreBytes, r.from), Remedy: r.last.remedy})
		}
	}
	return problems
}

// SumUp says that so many more places, with so many bytes in all, follow from byte from.
func SumUp(places int, total, from Bytes) string {
	return fmt.Sprintf("and %d more such places, %d bytes in all, from byte %d", places, total, from)
}

// span names a stretch of the file for people.
func span(offset, length Bytes) string {
	if length <= 0 {
		return fmt.Sprintf("at byte %d", offset)
	}
	return fmt.Sprintf("bytes %d to %d", offset, offset+length-1)
}
