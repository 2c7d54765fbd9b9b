package guard

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dmloop/extents"
)

// fakeWorld is a mapping whose state tests change.
type fakeWorld struct {
	mu     sync.Mutex
	state  Observed
	quicks int
	fulls  int
	block  chan struct{} // readings wait for it when it is not nil
	delay  time.Duration // of each reading
}

func newFakeWorld() *fakeWorld { return &fakeWorld{state: same(expected())} }

func (w *fakeWorld) change(f func(*Observed)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.state)
}

func (w *fakeWorld) counts() (quicks, fulls int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.quicks, w.fulls
}

func (w *fakeWorld) Quick(context.Context, bool) Observed {
	w.mu.Lock()
	block := w.block
	w.mu.Unlock()
	if block != nil {
		<-block
	}
	time.Sleep(w.delay)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.quicks++
	o := w.state
	o.Layout = Reading[extents.Layout]{}
	o.OwnTable.Done = false
	return o
}

func (w *fakeWorld) Full(_ context.Context, o Observed) Observed {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fulls++
	o.Layout, o.OwnTable = w.state.Layout, w.state.OwnTable
	return o
}

// fakeActions records what a watch does.
type fakeActions struct {
	mu       sync.Mutex
	log      []string
	actErr   error
	onAct    func()
	restored func()
	reports  chan Report
}

func newFakeActions() *fakeActions { return &fakeActions{reports: make(chan Report, 100)} }

func (a *fakeActions) note(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.log = append(a.log, fmt.Sprintf(format, args...))
}

func (a *fakeActions) did() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.log, "; ")
}

func (a *fakeActions) Act(_ context.Context, how Policy, reason string) error {
	a.note("%s", how)
	if reason == "" {
		a.note("no reason")
	}
	if a.onAct != nil {
		a.onAct()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.actErr
}

func (a *fakeActions) Restore(_ context.Context, pins []PinKind) error {
	a.note("restore %v", pins)
	if a.restored != nil {
		a.restored()
	}
	return nil
}

func (a *fakeActions) Checked(bool, time.Duration) {}
func (a *fakeActions) Report(r Report)             { a.reports <- r }

// run starts a watch after its first check and ends it with the test.
func run(t *testing.T, world World, act Actions, pace Pace) *Watch {
	t.Helper()
	w := NewWatch(expected(), world, act, NewBudget(pace))
	w.First(t.Context())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

// Whoever can make hints in a loop gets the first one answered at once, and then checks
// at a pace that costs little.
func TestWatchHeedsHintsAtAPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		world, act := newFakeWorld(), newFakeActions()
		w := run(t, world, act, slow)
		before, _ := world.counts()
		w.Hint("the first")
		synctest.Wait()
		if quicks, _ := world.counts(); quicks != before+1 {
			t.Errorf("%d checks at once of the first hint, not 1", quicks-before)
		}
		time.Sleep(time.Minute)
		before, _ = world.counts()
		const long = 100 * time.Second
		for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(time.Millisecond) {
			w.Hint("a rename")
		}
		quicks, _ := world.counts()
		// Each heeded hint can be owed a second look.
		if most := 2 * (hintBurst + int(long/hintPause) + 1); quicks-before > most || quicks-before < int(long/hintPause) {
			t.Errorf("%d checks of a hint each millisecond in %s, not %d to %d", quicks-before, long, int(long/hintPause), most)
		}
		// The last hint is not lost: what it was about is seen, without a timer.
		world.change(func(o *Observed) { o.Layout.Value.Extents = o.Layout.Value.Extents[:1] })
		w.Hint("the change")
		time.Sleep(hintPause)
		synctest.Wait()
		if did := act.did(); did != "error" {
			t.Errorf("a change during the storm: %q", did)
		}
	})
}

// Where a check takes long, a storm of hints takes a tenth of a processor all the same.
func TestWatchHeedsFewerHintsWhenChecksAreDear(t *testing.T) {
	p := Pace{Tick: 2 * time.Second}
	for took, want := range map[time.Duration]time.Duration{
		0: hintPause, time.Millisecond: hintPause, 80 * time.Millisecond: 800 * time.Millisecond, time.Second: 2 * time.Second,
	} {
		if got := p.hintEvery(took); got != want {
			t.Errorf("checks of %s: a hint each %s, not %s", took, got, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		world, act := newFakeWorld(), newFakeActions()
		world.delay = 80 * time.Millisecond
		w := run(t, world, act, slow)
		before, _ := world.counts()
		const long = 100 * time.Second
		for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(time.Millisecond) {
			w.Hint("a rename")
		}
		quicks, _ := world.counts()
		if busy := time.Duration(quicks-before) * world.delay; busy > long/4 {
			t.Errorf("%d checks take %s of %s", quicks-before, busy, long)
		}
	})
}

// slow never checks by itself within a test.
var slow = Pace{Tick: time.Hour, Bound: time.Hour, Share: 1}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s did not happen within a minute", what)
}

func TestWatchTearsDownAtAHint(t *testing.T) {
	world, act := newFakeWorld(), newFakeActions()
	w := run(t, world, act, slow)
	world.change(func(o *Observed) { o.Layout.Value.Extents = o.Layout.Value.Extents[:1] })
	w.Hint("test")
	await(t, "the tear-down", func() bool { return w.Last().Decision.State == Failed })
	if did := act.did(); did != "error" || w.Last().Cause != "test" {
		t.Errorf("did %q because of %q", did, w.Last().Cause)
	}
	before, _ := world.counts()
	w.Hint("again")
	time.Sleep(20 * time.Millisecond)
	if after, _ := world.counts(); after != before {
		t.Error("a mapping that was torn down is still read")
	}
	if r, err := w.Check(t.Context()); err != nil || r.Decision.State != Failed || r.Decision.Reason == "" {
		t.Errorf("Check afterwards: %+v, %v", r, err)
	}
}

func TestWatchFindsEverythingByTheTimerAlone(t *testing.T) {
	world, act := newFakeWorld(), newFakeActions()
	w := run(t, world, act, Pace{Tick: 5 * time.Millisecond, Bound: 10 * time.Millisecond, Share: 0.5})
	world.change(func(o *Observed) { o.Layout.Value.Extents = o.Layout.Value.Extents[:1] }) // the stamp stays
	await(t, "the tear-down", func() bool { return w.Last().Decision.State == Failed })
}

func TestWatchReadsTheLayoutOnlyWhenDue(t *testing.T) {
	world, act := newFakeWorld(), newFakeActions()
	run(t, world, act, Pace{Tick: 2 * time.Millisecond, Bound: time.Hour, Share: 1e-12})
	await(t, "twenty checks", func() bool { q, _ := world.counts(); return q > 20 })
	if _, fulls := world.counts(); fulls != 1 {
		t.Fatalf("the layout was read %d times while nothing happened", fulls)
	}
	world.change(func(o *Observed) { o.Stamp.Changed++ })
	await(t, "a reading after a new stamp", func() bool { _, f := world.counts(); return f == 2 })
	world.change(func(o *Observed) { o.Openers.Value = Readers })
	await(t, "a reading at every tick while somebody has it open", func() bool { _, f := world.counts(); return f > 10 })
}

func TestWatchActsBeforeItReadsTheLayout(t *testing.T) {
	world, act := newFakeWorld(), newFakeActions()
	w := run(t, world, act, slow)
	world.change(func(o *Observed) { o.Base.Value.Table = "0 100 linear 8:0 9" })
	w.Hint("uevent")
	await(t, "the tear-down", func() bool { return w.Last().Decision.State == Failed })
	if _, fulls := world.counts(); fulls != 1 {
		t.Error("the layout was read although the cheap part said enough")
	}
}

func TestWatchRestoresAndRecovers(t *testing.T) {
	world, act := newFakeWorld(), newFakeActions()
	act.restored = func() { world.change(func(o *Observed) { o.Pins.Value.InForce = expected().Pins.InForce }) }
	w := run(t, world, act, slow)
	world.change(func(o *Observed) { o.Pins.Value.InForce = []PinKind{"immutable"} })
	w.Hint("test")
	await(t, "weakened", func() bool { return strings.Contains(act.did(), "restore [nodefrag]") })
	await(t, "healthy again", func() bool { return w.Last().Decision.State == Healthy })
	states := ""
	for len(act.reports) > 0 {
		states += string((<-act.reports).Decision.State) + " "
	}
	if states != "healthy weakened healthy " {
		t.Errorf("reported %q", states)
	}
}

func TestWatchRetriesATearDownThatFails(t *testing.T) {
	world, act := newFakeWorld(), newFakeActions()
	act.actErr = errors.New("busy")
	w := run(t, world, act, slow)
	world.change(func(o *Observed) { o.Identity.Value.Size++ })
	w.Hint("test")
	await(t, "a second try", func() bool { return strings.Count(act.did(), "error") >= 2 })
	if r := w.Last(); r.Decision.State != Stale || r.ActError != "busy" {
		t.Errorf("meanwhile: %+v", r)
	}
	act.mu.Lock()
	act.actErr = nil
	act.mu.Unlock()
	await(t, "the tear-down", func() bool { return w.Last().Decision.State == Failed })
}

func TestWatchDoesNotTearDownForOneFailedReading(t *testing.T) {
	world, act := newFakeWorld(), newFakeActions()
	w := run(t, world, act, Pace{Tick: 2 * time.Millisecond, Bound: time.Hour, Share: 1})
	world.change(func(o *Observed) { o.Pins.Err = errRead })
	await(t, "a failed reading", func() bool { return len(w.Last().Findings) > 0 })
	world.change(func(o *Observed) { o.Pins.Err = nil })
	await(t, "the recovery", func() bool { return len(w.Last().Findings) == 0 })
	if act.did() != "" {
		t.Errorf("did %q", act.did())
	}
	world.change(func(o *Observed) { o.Pins.Err = errRead })
	await(t, "failing closed", func() bool { return w.Last().Decision.State == Failed })
}

func TestWatchHurriesWhileTheHostWaits(t *testing.T) {
	world, act := newFakeWorld(), newFakeActions()
	w := run(t, world, act, slow)
	world.change(func(o *Observed) { o.Base.Value.Suspended = true })
	w.Hint("test")
	await(t, "seen suspended", func() bool { return len(w.Last().Findings) == 1 })
	world.change(func(o *Observed) { o.Base.Value.Suspended = false; o.Base.Value.Table = "" })
	await(t, "seen changed without a hint", func() bool { return w.Last().Decision.State == Failed })
}

func TestWatchFailsClosedWhenAReadingNeverReturns(t *testing.T) {
	world, act := newFakeWorld(), newFakeActions()
	w := NewWatch(expected(), world, act, NewBudget(slow))
	w.stuckAfter = 10 * time.Millisecond
	w.First(t.Context())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	block := make(chan struct{})
	world.mu.Lock()
	world.block = block
	world.mu.Unlock()
	w.Hint("test")
	await(t, "failing closed", func() bool { return w.Last().Decision.State == Failed })
	close(block)
	cancel()
	<-done
}

func TestWatchLimitsWhatAFloodOfHintsCosts(t *testing.T) {
	world, act := newFakeWorld(), newFakeActions()
	slowWorld := &costly{fakeWorld: world, cost: 5 * time.Millisecond}
	w := run(t, slowWorld, act, slow)
	end := time.Now().Add(200 * time.Millisecond)
	for time.Now().Before(end) {
		w.Hint("flood")
		time.Sleep(100 * time.Microsecond)
	}
	if _, fulls := world.counts(); fulls > 15 { // 200 ms / (5 ms + 4 x 5 ms) and some slack
		t.Errorf("%d full readings in 200 ms", fulls)
	}
}

type costly struct {
	*fakeWorld
	cost time.Duration
}

func (c *costly) Full(ctx context.Context, o Observed) Observed {
	time.Sleep(c.cost)
	return c.fakeWorld.Full(ctx, o)
}

func TestStoppedWatchLeavesTheMappingAlone(t *testing.T) {
	world, act := newFakeWorld(), newFakeActions()
	ctx, cancel := context.WithCancel(t.Context())
	w := NewWatch(expected(), world, act, NewBudget(slow))
	w.First(ctx)
	world.change(func(o *Observed) { o.Identity.Value.Size++ })
	cancel()
	w.Hint("test")
	w.Run(ctx)
	if act.did() != "" {
		t.Errorf("did %q", act.did())
	}
}

// The checks of all mappings fall on few instants, none of them earlier or much later
// than the tick says.
func TestTicksFallTogether(t *testing.T) {
	p := Pace{Tick: 2 * time.Second}
	instants := map[int64]bool{}
	begun := time.Now()
	for i := range 1000 {
		now := begun.Add(time.Duration(i) * time.Millisecond)
		wait := p.tick(now)
		if wait < p.Tick*9/10 || wait > p.Tick*11/10+p.Tick/steps {
			t.Fatalf("a tick of %s", wait)
		}
		instants[now.Add(wait).UnixNano()] = true
	}
	if n := len(instants); n < 3 || n > 9 { // 1.8 s to 3.2 s after begun, in steps of 0.25 s
		t.Errorf("%d instants", n)
	}
	if wait := (Pace{Tick: 3}).tick(begun); wait < 2 || wait > 5 {
		t.Errorf("a tick of 3 ns is %d", wait)
	}
}

// What f2fs's collector does in a hurry is watched in a hurry.
func TestRisingTriesAreWatchedClosely(t *testing.T) {
	world, actions := newFakeWorld(), newFakeActions()
	tries := func(n uint32) {
		world.change(func(o *Observed) { o.Stamp.Tries, o.Pins.Value.Tries, o.Pins.Value.Limit = n, n, 2048 })
	}
	w := NewWatch(expected(), world, actions, NewBudget(Pace{Tick: time.Hour, Bound: time.Hour, Share: 1}))
	tries(3)
	if r := w.First(t.Context()); w.pause(r) == hurry {
		t.Error("an old count is no hurry")
	}
	tries(4)
	time.Sleep(5 * time.Millisecond) // full readings have a rest between them
	if r := w.check(t.Context(), ifDue, "timer"); w.pause(r) != hurry || r.Fulls != 2 {
		t.Errorf("a risen count: pause %s, %d full readings", w.pause(r), r.Fulls)
	}
	if r := w.check(t.Context(), ifDue, "timer"); w.pause(r) == hurry || r.Decision.State != Healthy {
		t.Errorf("a count that stays: pause %s, %s", w.pause(r), r.Decision.State)
	}
}

func TestBudget(t *testing.T) {
	b := NewBudget(Pace{Tick: time.Second, Bound: 20 * time.Second, Share: 0.01})
	if i := b.Interval(); i != time.Second {
		t.Errorf("nothing spent: %s", i)
	}
	b.Spent("a", 50*time.Millisecond)
	if i := b.Interval(); i != 5*time.Second {
		t.Errorf("50 ms: %s", i)
	}
	b.Spent("b", 50*time.Millisecond)
	b.Spent("a", 20*time.Millisecond)
	if i := b.Interval(); i != 7*time.Second {
		t.Errorf("70 ms: %s", i)
	}
	b.Spent("c", time.Second)
	if i := b.Interval(); i != 20*time.Second {
		t.Errorf("more than the bound: %s", i)
	}
	b.Forget("c")
	b.Forget("a")
	if i := b.Interval(); i != 5*time.Second {
		t.Errorf("after forgetting: %s", i)
	}
}

func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	for end := time.Now().Add(2 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); code == 0 && n > before {
		fmt.Fprintf(os.Stderr, "%d goroutines are left, %d were there before\n", n, before)
		code = 1
	}
	os.Exit(code)
}

// A mapping that was suspended for what it is, and that somebody resumes by hand, is
// looked at again: suspended as long as it is different, and healthy when it is not.
func TestWatchLooksAgainAtWhatWasResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		world, act := newFakeWorld(), newFakeActions()
		act.onAct = func() { world.change(func(o *Observed) { o.Own.Value.Suspended = true }) }
		want := expected()
		want.Policy = OnChangeSuspend
		w := NewWatch(want, world, act, NewBudget(Pace{Tick: time.Second, Bound: time.Hour, Share: 1}))
		w.First(t.Context())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); w.Run(ctx) }()
		defer func() { cancel(); <-done }()
		resume := func() { world.change(func(o *Observed) { o.Own.Value.Suspended = false }) }
		world.change(func(o *Observed) { o.Layout.Value.Extents = o.Layout.Value.Extents[:1] })
		w.Hint("test")
		time.Sleep(10 * time.Second)
		if did := act.did(); did != "suspend" || w.Last().Decision.State != Suspended {
			t.Fatalf("did %q, %+v", did, w.Last().Decision)
		}
		resume()
		w.Hint("uevent")
		time.Sleep(10 * time.Second)
		if did := act.did(); did != "suspend; suspend" || w.Last().Decision.State != Suspended {
			t.Errorf("resumed at a hint: did %q, %+v", did, w.Last().Decision)
		}
		resume() // and nobody tells
		time.Sleep(10 * time.Second)
		if did := act.did(); did != "suspend; suspend; suspend" || w.Last().Decision.State != Suspended {
			t.Errorf("resumed without a hint: did %q, %+v", did, w.Last().Decision)
		}
		world.change(func(o *Observed) { o.Layout = same(want).Layout })
		resume()
		time.Sleep(10 * time.Second)
		if did := act.did(); did != "suspend; suspend; suspend" || w.Last().Decision.State != Healthy {
			t.Errorf("as it was again: did %q, %+v", did, w.Last().Decision)
		}
	})
}
