package guard

import "fmt"

// Policy says what happens to a mapping that was found different.
type Policy string

// The policies of `map --on-change`.
const (
	OnChangeError   Policy = "error"   // every access gives an I/O error from then on
	OnChangeSuspend Policy = "suspend" // every access waits until somebody resumes or unmaps
	OnChangeReport  Policy = "report"  // nothing but a report
)

// ParsePolicy reads a policy; "" is OnChangeError.
func ParsePolicy(s string) (Policy, error) {
	switch p := Policy(s); p {
	case OnChangeError, OnChangeSuspend, OnChangeReport:
		return p, nil
	case "":
		return OnChangeError, nil
	}
	return "", fmt.Errorf("policy %q is none of error, suspend and report", s)
}

// State is what is known of a mapping.
type State string

// The states. A check leads to those from Healthy to Suspended; the other two are there
// while somebody is at work on the mapping.
const (
	Mapping   State = "mapping" // not live yet; without whoever makes it, it is undone
	Healthy   State = "healthy"
	Weakened  State = "weakened"
	Stale     State = "stale"     // found different and not torn down
	Failed    State = "failed"    // found different and torn down
	Suspended State = "suspended" // found different and suspended
	Releasing State = "releasing" // on its way out
)

// Broken reports whether the mapping was found different from what was mapped.
func (s State) Broken() bool { return s == Stale || s == Failed }

// Decision is what follows from a check.
type Decision struct {
	State   State
	Reason  string
	Act     Policy    // OnChangeError or OnChangeSuspend: do it now; "" otherwise
	Restore []PinKind // pins to set again
}

// Decide turns findings into a decision under the mapping's policy. It is pure.
func Decide(findings []Finding, policy Policy) Decision {
	switch Worst(findings) {
	case Different:
		d := Decision{State: Stale, Reason: Reason(findings, Different)}
		if already(findings) {
			d.State = Failed
			return d
		}
		switch policy {
		case OnChangeReport:
		case OnChangeSuspend:
			d.State, d.Act = Suspended, OnChangeSuspend
		default: // unknown means refuse
			d.State, d.Act = Failed, OnChangeError
		}
		return d
	case Weak:
		d := Decision{State: Weakened, Reason: Reason(findings, Weak)}
		for _, f := range findings {
			if f.Kind == PinLost {
				d.Restore = append(d.Restore, f.Pins...)
			}
		}
		return d
	}
	return Decision{State: Healthy, Reason: Reason(findings, Note)}
}

// already reports whether there is nothing left to tear down.
func already(findings []Finding) bool {
	for _, f := range findings {
		if f.Kind == TornDown || f.Kind == OwnGone {
			return true
		}
	}
	return false
}
