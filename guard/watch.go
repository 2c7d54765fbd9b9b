package guard

import (
	"cmp"
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"dmloop/internal/ration"
)

// World reads the state of one mapping again. It changes nothing.
type World interface {
	// Quick reads everything but the layout and the own table, device-mapper first.
	// It leaves the image alone while the host device is suspended, since a file
	// system on it may make readers wait. Unless fresh, what another mapping's check
	// has just read of the host device will do.
	Quick(ctx context.Context, fresh bool) Observed
	// Full adds the layout and the own table to what Quick returned.
	Full(ctx context.Context, quick Observed) Observed
}

// Actions is all that a Watch does to a mapping.
type Actions interface {
	// Act makes the mapping give I/O errors, or suspends it, at once.
	Act(ctx context.Context, how Policy, reason string) error
	// Restore sets pins again that were lost.
	Restore(ctx context.Context, pins []PinKind) error
	// Checked is called after every check; full ones read the layout.
	Checked(full bool, took time.Duration)
	// Report is called after the first check and whenever the decision or the kinds
	// of findings changed. It must not wait for anything.
	Report(Report)
}

// Report is the outcome of a check.
type Report struct {
	Decision Decision
	Findings []Finding
	Cause    string // what made the guard look: a hint's text, "timer", "asked" or "start"
	Grade    Grade  // as in force; the recorded one while it cannot be read
	Time     time.Time
	LastFull time.Time
	Checks   uint64
	Fulls    uint64
	Cost     time.Duration // of the last full reading
	Interval time.Duration // between full readings, when nothing hints at a change
	ActError string        // why the decision could not be carried out
}

// StuckAfter is how long a reading may take before the mapping counts as
// unreadable: a file system that answers nothing cannot be verified.
const StuckAfter = time.Minute

// Watch checks one mapping again and again until it gives errors or is gone.
type Watch struct {
	want   Expected
	world  World
	act    Actions
	budget *Budget
	tally  tally
	stamp  Stamp
	last   atomic.Pointer[Report]

	hints    chan string
	heed     ration.Ration // of hints
	requests chan chan Report

	stuckAfter time.Duration
	rising     bool          // f2fs's collector met the pin since the last check
	late       chan Observed // gives a result when the reading that was stuck comes back
	owed       string        // the hint that came too soon after a full reading; else empty
}

// NewWatch returns a watch that has not begun.
func NewWatch(want Expected, world World, act Actions, budget *Budget) *Watch {
	w := &Watch{
		want: want, world: world, act: act, budget: budget,
		hints: make(chan string, 1), heed: ration.Ration{Burst: hintBurst, Every: hintPause}, requests: make(chan chan Report), stuckAfter: StuckAfter,
	}
	w.last.Store(&Report{Grade: want.Pins.Grade, Decision: Decision{State: Healthy}})
	return w
}

// Hint asks for a full check soon. It never waits; hints that come faster than
// checks are one.
func (w *Watch) Hint(why string) {
	select {
	case w.hints <- why:
	default:
	}
}

// Last returns the report of the last check.
func (w *Watch) Last() Report { return *w.last.Load() }

// Check asks the running watch for a full check and waits for its report. The
// report of a mapping that was torn down stays the one that says why.
func (w *Watch) Check(ctx context.Context) (Report, error) {
	answer := make(chan Report, 1)
	select {
	case w.requests <- answer:
	case <-ctx.Done():
		return w.Last(), ctx.Err()
	}
	select {
	case r := <-answer:
		return r, nil
	case <-ctx.Done():
		return w.Last(), ctx.Err()
	}
}

// First makes one full check and carries out what follows from it. It comes
// before Run.
func (w *Watch) First(ctx context.Context) Report { return w.check(ctx, now, "start") }

// Run checks at every hint and at every tick until ctx ends. It leaves the
// mapping as it is.
func (w *Watch) Run(ctx context.Context) {
	timer := time.NewTimer(w.budget.pace.tick(time.Now()))
	defer timer.Stop()
	for {
		var answers []chan Report
		when, cause := ifDue, "timer"
		hints, rested := w.hints, (<-chan time.Time)(nil)
		if wait := w.heed.Wait(time.Now()); wait > 0 { // a hint that comes now waits in its channel
			hints, rested = nil, time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-rested:
			continue
		case cause = <-hints:
			when = soon
			w.heed.Take(time.Now())
		case answer := <-w.requests:
			when, cause = now, "asked"
			answers = append(answers, answer)
		case <-timer.C:
		}
		if ctx.Err() != nil {
			return
		}
		report := w.Last()
		switch {
		case !report.Settled():
			report = w.check(ctx, when, cause)
		case report.Decision.State == Suspended && w.resumed(ctx):
			report = w.check(ctx, now, "somebody resumed the device")
		}
		for _, a := range answers {
			a <- report
		}
		timer.Reset(w.pause(report))
	}
}

// breather is the number of times a full reading's own duration that pass between
// two of them, however many hints come.
const breather = 4

// urgency says when the layout is to be read.
type urgency int

const (
	ifDue urgency = iota
	soon          // at a hint: as soon as the last reading is long enough ago
	now           // somebody waits for the answer
)

// Settled reports whether there is nothing left to find out: the mapping gives
// errors, waits, or is gone.
func (r Report) Settled() bool {
	return (r.Decision.State == Failed || r.Decision.State == Suspended) && r.ActError == ""
}

// resumed reports whether the mapping, which was suspended for what it was found to be,
// runs again: somebody had a word with it, and it may be as different as before.
func (w *Watch) resumed(ctx context.Context) bool {
	got := w.read(ctx, func(ctx context.Context) Observed { return w.world.Quick(ctx, false) })
	return got.Own.ok() && !got.Own.Value.Suspended
}

// pause returns the time until the next check.
func (w *Watch) pause(r Report) time.Duration {
	if r.Settled() && r.Decision.State != Suspended {
		return time.Hour
	}
	hasty := w.rising || r.ActError != "" && r.Decision.Act != "" || r.ActError == "" && len(r.Decision.Restore) > 0
	for _, f := range r.Findings {
		if f.Kind == BaseWaiting || f.Kind == OwnWaiting {
			hasty = true
		}
	}
	switch {
	case hasty:
		return hurry
	case w.owed != "":
		return min(max(breather*r.Cost, time.Millisecond), w.budget.pace.Tick)
	case w.tally.waiting():
		return min(w.budget.pace.tick(time.Now()), time.Second)
	}
	return w.budget.pace.tick(time.Now())
}

// check reads, compares, decides and acts.
func (w *Watch) check(ctx context.Context, full urgency, cause string) Report {
	before := w.Last()
	r := Report{Cause: cause, Grade: before.Grade, LastFull: before.LastFull, Cost: before.Cost, Checks: before.Checks + 1, Fulls: before.Fulls}
	begun := time.Now()
	got := w.read(ctx, func(ctx context.Context) Observed { return w.world.Quick(ctx, full != ifDue) })
	found := differences(w.want, got)
	if w.owed == "" && (full >= soon || w.due(got, before)) {
		w.owed = cause
	}
	rested := time.Since(before.LastFull) >= breather*before.Cost
	if Worst(found) < Different && (full == now || w.owed != "" && rested) {
		r.Cause, w.owed = cmp.Or(w.owed, cause), ""
		start, quick := time.Now(), got
		got = w.read(ctx, func(ctx context.Context) Observed { return w.world.Full(ctx, quick) })
		found = differences(w.want, got)
		r.Cost, r.LastFull, r.Fulls = time.Since(start), time.Now(), r.Fulls+1
		w.budget.Spent(w.want.Name, r.Cost)
	}
	took := time.Since(begun)
	w.heed.Every = w.budget.pace.hintEvery(took)
	w.act.Checked(r.Fulls > before.Fulls, took)
	if ctx.Err() != nil {
		return before // stopped in the middle: what was read is not to be judged
	}
	if got.Base.ok() && Worst(found) < Different {
		// Whatever changed there does not concern the mapping. The next check compares
		// with this, so that it costs nothing when nothing changes any more.
		w.want.Base.Table = got.Base.Value.Table
	}
	w.rising = got.Stamp.Tries > w.stamp.Tries && before.Checks > 0
	w.stamp = got.Stamp
	if got.Pins.ok() {
		r.Grade = got.Pins.Value.Grade
	}
	r.Findings = w.tally.weigh(got, found)
	r.Decision = Decide(r.Findings, w.want.Policy)
	w.carryOut(ctx, &r)
	r.Time, r.Interval = time.Now(), w.budget.Interval()
	w.last.Store(&r)
	if before.Checks == 0 || changed(before, r) {
		w.act.Report(r)
	}
	return r
}

// due reports whether the layout is to be read although no hint came.
func (w *Watch) due(got Observed, before Report) bool {
	return got.Stamp != w.stamp || w.tally.waiting() ||
		got.Openers.ok() && got.Openers.Value != Alone ||
		time.Since(before.LastFull) >= w.budget.Interval()
}

// carryOut does what was decided.
func (w *Watch) carryOut(ctx context.Context, r *Report) {
	var err error
	switch {
	case r.Decision.Act != "":
		if err = w.act.Act(ctx, r.Decision.Act, r.Decision.Reason); err != nil {
			r.Decision.State = Stale
		}
	case len(r.Decision.Restore) > 0:
		err = w.act.Restore(ctx, r.Decision.Restore)
	}
	if err != nil {
		r.ActError = err.Error()
	}
}

// changed reports whether b is news after a.
func changed(a, b Report) bool {
	if a.Decision.State != b.Decision.State || a.ActError != b.ActError || a.Grade != b.Grade || len(a.Findings) != len(b.Findings) {
		return true
	}
	for i := range a.Findings {
		if a.Findings[i].Kind != b.Findings[i].Kind || a.Findings[i].Severity != b.Findings[i].Severity {
			return true
		}
	}
	return false
}

// read runs one reading, which a stuck file system may never let return. It does
// not start another one before the last has come back.
func (w *Watch) read(ctx context.Context, reading func(context.Context) Observed) Observed {
	limit := time.NewTimer(w.stuckAfter)
	defer limit.Stop()
	if w.late != nil { // what it read is old: wait for its end only
		select {
		case <-w.late:
			w.late = nil
		case <-ctx.Done():
			return Observed{}
		case <-limit.C:
			return w.stuck()
		}
	}
	result := make(chan Observed, 1)
	go func() { result <- reading(ctx) }()
	select {
	case got := <-result:
		return got
	case <-limit.C:
		w.late = result
		return w.stuck()
	}
}

func (w *Watch) stuck() Observed {
	return Observed{Stuck: fmt.Errorf("a reading did not come back within %s", w.stuckAfter)}
}
