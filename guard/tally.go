package guard

import (
	"fmt"
	"slices"
)

// Patience is the number of readings in a row that may fail before the mapping
// counts as different. A part that cannot be read may have changed, so the guard
// fails closed in the end, but never on the first failure.
const Patience = 5

// tolerated is the number of checks in a row that may see other readers before the
// mapping counts as weakened: dmloop's own commands and the kernel's permission
// events have the image open for moments.
const tolerated = 1

// tally remembers what went wrong in a row. The zero value is ready.
type tally struct {
	failures map[Part]int
	readers  int
}

// weigh returns the findings of one of many readings: its differences, except for a reader
// who passes, and the parts that could not be read, each of which weighs more every time.
func (t *tally) weigh(got Observed, differences []Finding) []Finding {
	if t.failures == nil {
		t.failures = map[Part]int{}
	}
	if got.Openers.ok() {
		if got.Openers.Value == Readers {
			t.readers++
		} else {
			t.readers = 0
		}
	}
	findings := slices.DeleteFunc(slices.Clone(differences), func(f Finding) bool {
		return f.Kind == Opened && f.Severity == Weak && t.readers <= tolerated
	})
	for _, o := range got.outcomes() {
		if o.err == nil {
			delete(t.failures, o.part)
			continue
		}
		t.failures[o.part]++
		findings = append(findings, unreadable(o, t.failures[o.part]))
	}
	return findings
}

// unreadable is the finding of a part that could not be read so many times in a row; 0 is
// for a check that remembers nothing.
func unreadable(o outcome, times int) Finding {
	f := Finding{Kind: Unreadable, Severity: Note}
	switch {
	case times == 0:
		f.Message = fmt.Sprintf("the %s could not be read: %v", o.part, o.err)
	case times < Patience:
		f.Message = fmt.Sprintf("the %s could not be read, %d of %d times: %v", o.part, times, Patience, o.err)
	default:
		f.Severity = Different
		f.Message = fmt.Sprintf("the %s could not be read %d times in a row: %v", o.part, times, o.err)
	}
	return f
}

// waiting reports whether a part failed at the last try, so that the next check
// should come soon and read everything.
func (t *tally) waiting() bool { return len(t.failures) > 0 }
