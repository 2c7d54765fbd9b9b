package ration

import (
	"testing"
	"time"
)

func TestRation(t *testing.T) {
	r := Ration{Burst: 3, Every: time.Second}
	now := time.Unix(1000, 0)
	take := func(times int) (allowed int) {
		for range times {
			if r.Take(now) {
				allowed++
			}
		}
		return allowed
	}
	if got := take(10); got != 3 {
		t.Errorf("%d at once, not 3", got)
	}
	if got := r.Wait(now); got != time.Second {
		t.Errorf("the next one in %s", got)
	}
	now = now.Add(999 * time.Millisecond)
	if got := take(10); got != 0 || r.Whole(now) {
		t.Errorf("%d before a second is over", got)
	}
	for range 5 { // from then on one a second
		now = now.Add(time.Second)
		if got := take(10); got != 1 {
			t.Errorf("%d in a second", got)
		}
	}
	now = now.Add(time.Hour)
	if !r.Whole(now) || r.Wait(now) != 0 {
		t.Error("not whole after an hour")
	}
	if got := take(10); got != 3 {
		t.Errorf("%d at once after an hour, not 3", got)
	}
}
