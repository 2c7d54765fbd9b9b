// Package ration limits how often something is done that others can cause: a few times
// at once, and from then on at a steady pace.
package ration

import "time"

// Ration allows Burst times at once and one more each Every. It is not for use by
// several goroutines at a time.
type Ration struct {
	Burst int
	Every time.Duration
	whole time.Time // when all of the burst is there again
}

// Wait returns how long it is until Take allows once more.
func (r *Ration) Wait(now time.Time) time.Duration {
	if r.Whole(now) {
		return 0
	}
	return max(0, r.whole.Sub(now)-time.Duration(r.Burst-1)*r.Every)
}

// Take reports whether it is allowed now, and counts it if so.
func (r *Ration) Take(now time.Time) bool {
	if r.Wait(now) > 0 {
		return false
	}
	if r.whole.Before(now) {
		r.whole = now
	}
	r.whole = r.whole.Add(r.Every)
	return true
}

// Whole reports whether nothing of the burst is used up: nothing is lost with a ration
// that is whole.
func (r *Ration) Whole(now time.Time) bool { return !r.whole.After(now) }
