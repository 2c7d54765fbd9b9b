package guard

import "fmt"

// Patience is the number of readings in a row that may fail before the mapping
// counts as different. A part that cannot be read may have changed, so the guard
// fails closed in the end, but never on the first failure.
const Patience = 5

// tolerated is the number of checks in a row that may see other readers before the
// mapping counts as weakened: dmloop's own commands and the kernel's permission
// events have the image open for moments.
const tolerated = 1

// Tally remembers what went wrong in a row. The zero value is ready.
type Tally struct {
	failures map[Part]int
	readers  int
}

// Next takes the findings of one check and returns them with the severity that
// their repetition gives them.
func (t *Tally) Next(got Observed, findings []Finding) []Finding {
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
	var out []Finding
	for _, f := range findings {
		if f.Kind == Unreadable && f.Severity == Note || f.Kind == Opened && f.Severity == Weak && t.readers <= tolerated {
			continue
		}
		out = append(out, f)
	}
	for _, o := range got.outcomes() {
		if o.err == nil {
			delete(t.failures, o.part)
			continue
		}
		t.failures[o.part]++
		f := Finding{Kind: Unreadable, Severity: Note}
		f.Message = fmt.Sprintf("the %s could not be read, %d of %d times: %v", o.part, t.failures[o.part], Patience, o.err)
		if t.failures[o.part] >= Patience {
			f.Severity = Different
			f.Message = fmt.Sprintf("the %s could not be read %d times in a row: %v", o.part, t.failures[o.part], o.err)
		}
		out = append(out, f)
	}
	return out
}

// Waiting reports whether a part failed at the last try, so that the next check
// should come soon and read everything.
func (t *Tally) Waiting() bool { return len(t.failures) > 0 }
