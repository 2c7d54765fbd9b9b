package guard

import (
	"math/rand/v2"
	"sync"
	"time"
)

// Pace says how often a mapping is checked when no hint comes.
//
// Every Tick the cheap part is read: identity, size, times, flags, pins, who else
// has the image open, the host device's table, the state of our own device. The
// whole layout and our own table are read at every hint; at every tick while the
// cheap part differs from the last one, could not be read, or shows that somebody
// else has the image open (who moves blocks needs a descriptor, except for the file system itself);
// and otherwise at an interval of at least Tick and at most Bound, chosen so that
// the readings of all mappings together take Share of one processor.
type Pace struct {
	Tick  time.Duration
	Bound time.Duration
	Share float64
}

// DefaultPace is what the guard runs with.
var DefaultPace = Pace{Tick: 2 * time.Second, Bound: 30 * time.Second, Share: 0.002}

// hurry is the time between checks while something is about to happen: a part that
// could not be read, a host device with a table waiting, a tear-down that failed.
const hurry = 100 * time.Millisecond

// Hints are answered at once, hintBurst of them in a row, and from then on one each
// hintPause, or one each hintShare times of what a check takes: whoever renames a
// directory in a loop makes a hint each time. A change that happens meanwhile is seen
// that much later, but not later than the timer sees it.
const (
	hintBurst = 10
	hintPause = 100 * time.Millisecond
	hintShare = 10
)

// hintEvery returns the time between hints that lead to checks when a check takes that long.
func (p Pace) hintEvery(took time.Duration) time.Duration {
	return max(hintPause, min(hintShare*took, p.Tick))
}

// steps is the number of instants in a tick at which checks without a hint are made.
const steps = 8

// tick returns the time until the next check: Tick, up to a tenth longer or shorter, so
// that nobody can tell when it comes, and then on to the next instant that all
// mappings share. Waking up costs more than a check; so a hundred mappings make eight
// wake-ups in a tick and not a hundred.
func (p Pace) tick(now time.Time) time.Duration {
	jittered := time.Duration(float64(p.Tick) * (0.9 + 0.2*rand.Float64()))
	step := max(p.Tick/steps, 1)
	late := time.Duration(now.Add(jittered).UnixNano()) % step
	return jittered + (step-late)%step
}

// Budget shares the time that full readings may take among all mappings.
type Budget struct {
	pace  Pace
	mu    sync.Mutex
	costs map[string]time.Duration
	sum   time.Duration
}

// NewBudget returns a budget for mappings that are checked at the given pace.
func NewBudget(p Pace) *Budget { return &Budget{pace: p, costs: map[string]time.Duration{}} }

// Spent records what the last full reading of a mapping took.
func (b *Budget) Spent(name string, cost time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum += cost - b.costs[name]
	b.costs[name] = cost
}

// Forget takes a mapping out of the budget.
func (b *Budget) Forget(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum -= b.costs[name]
	delete(b.costs, name)
}

// Interval returns the time between two full readings of each mapping.
func (b *Budget) Interval() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pace.Share <= 0 {
		return b.pace.Bound
	}
	return min(max(time.Duration(float64(b.sum)/b.pace.Share), b.pace.Tick), max(b.pace.Bound, b.pace.Tick))
}
