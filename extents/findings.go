package extents

import (
	"cmp"
	"fmt"
	"slices"
)

// maxListed is the number of places of one rule that are listed one by one.
const maxListed = 10

// layoutRules are the rules that a layout can break, in the order of the report.
var layoutRules = []Rule{Hole, Unwritten, Delalloc, Unknown, Shared, Encoded, Encrypted, Inline, Tail, NotAligned}

// finding is a stretch of the file with one problem.
type finding struct {
	offset, length Bytes
	what           string
}

// findings collects what breaks each rule, in order of the file.
type findings map[Rule]*ruleFindings

// ruleFindings holds the first places in full and the sum of the others, so that
// a file of a million holes costs no memory.
type ruleFindings struct {
	listed    []finding
	more      int   // places not listed
	moreBytes Bytes // their length
	from, end Bytes // the stretch of the file that they lie in
	last      finding
}

// add records that length bytes from offset break rule. It joins the place with
// the one before when they touch and have the same reason.
func (f findings) add(rule Rule, offset, length Bytes, what string) {
	r := f[rule]
	if r == nil {
		r = &ruleFindings{}
		f[rule] = r
	} else if r.last.what == what && r.last.offset+r.last.length == offset {
		r.last.length += length
		return
	} else {
		r.flush()
	}
	r.last = finding{offset, length, what}
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

// list closes the collection and returns the problems, by rule and offset.
func (f findings) list() []Problem {
	var problems []Problem
	for _, rule := range layoutRules {
		r := f[rule]
		if r == nil {
			continue
		}
		r.flush()
		slices.SortStableFunc(r.listed, func(a, b finding) int { return cmp.Compare(a.offset, b.offset) })
		for _, l := range r.listed {
			problems = append(problems, Problem{
				Rule:    rule,
				Offset:  l.offset,
				Length:  l.length,
				Message: fmt.Sprintf("%s: %s", span(l.offset, l.length), l.what),
			})
		}
		if r.more > 0 {
			problems = append(problems, Problem{
				Rule:    rule,
				Offset:  r.from,
				Length:  r.end - r.from,
				Message: fmt.Sprintf("and %d more such places, %d bytes in all, from byte %d", r.more, r.moreBytes, r.from),
			})
		}
	}
	return problems
}

// span names a stretch of the file for people.
func span(offset, length Bytes) string {
	if length <= 0 {
		return fmt.Sprintf("at byte %d", offset)
	}
	return fmt.Sprintf("bytes %d to %d", offset, offset+length-1)
}
