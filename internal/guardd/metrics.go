package guardd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/guard"
)

// buckets are the upper bounds of the check time histogram, in seconds.
var buckets = []float64{0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1}

// counters are what the metrics show apart from the mappings themselves.
type counters struct {
	mu       sync.Mutex
	checks   map[bool]*histogram // full or not
	stops    map[string]uint64   // labels -> count
	refusals map[string]uint64   // by the gate in the kernel, by kind
}

type histogram struct {
	counts []uint64 // one more than buckets
	sum    float64
	n      uint64
}

// denialOpen is the kind of denials that the gate makes: of an open.
const denialOpen = "open"

func newCounters() *counters {
	c := &counters{checks: map[bool]*histogram{}, stops: map[string]uint64{}, refusals: map[string]uint64{}}
	for _, full := range []bool{false, true} {
		c.checks[full] = &histogram{counts: make([]uint64, len(buckets)+1)}
	}
	return c
}

func (c *counters) checked(full bool, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.checks[full]
	h.counts[sort.SearchFloat64s(buckets, took.Seconds())]++
	h.sum += took.Seconds()
	h.n++
}

func (c *counters) stopped(reason guard.Kind, state guard.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stops[fmt.Sprintf("reason=%q,state=%q", reason, state)]++
}

// refused counts what the gate in the kernel refused.
func (c *counters) refused(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refusals[kind]++
}

// addRefusals adds them to what the guard's own gate denied.
func (c *counters) addRefusals(denied map[string]uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for kind, n := range c.refusals {
		denied[kind] += n
	}
}

// Metrics implements guardrpc.Handler: Prometheus' text format, version 0.0.4.
func (d *Daemon) Metrics(context.Context) (string, error) {
	var b strings.Builder
	denied := map[string]uint64{denialOpen: 0}
	if d.gate != nil {
		denied[denialOpen] = d.gate.AllDenied()
	}
	d.counts.addRefusals(denied)
	d.counts.write(&b, denied)
	states := map[guard.State]int{guard.Healthy: 0, guard.Weakened: 0, guard.Stale: 0, guard.Failed: 0, guard.Suspended: 0}
	d.mu.Lock()
	for _, m := range d.mappings {
		states[m.watch.Last().Decision.State]++
	}
	d.mu.Unlock()
	states[guard.Releasing] = len(d.releases.pending(d.halfWay))
	head(&b, "dmloop_guard_mappings", "gauge", "Mappings watched or still to be released, by state.")
	for _, s := range sortedKeys(states) {
		fmt.Fprintf(&b, "dmloop_guard_mappings{state=%q} %d\n", s, states[s])
	}
	head(&b, "dmloop_guard_full_interval_seconds", "gauge", "Time between readings of whole layouts when nothing hints at a change.")
	fmt.Fprintf(&b, "dmloop_guard_full_interval_seconds %g\n", d.budget.Interval().Seconds())
	head(&b, "dmloop_guard_start_time_seconds", "gauge", "When the guard started, in seconds since 1970.")
	fmt.Fprintf(&b, "dmloop_guard_start_time_seconds %d\n", d.started.Unix())
	return b.String(), nil
}

// write adds the counters, and those of denials by their kind.
func (c *counters) write(b *strings.Builder, denied map[string]uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	head(b, "dmloop_guard_check_seconds", "histogram", "Time that checks took; full ones read the whole layout.")
	for _, full := range []bool{false, true} {
		h, sum := c.checks[full], uint64(0)
		for i, bound := range buckets {
			sum += h.counts[i]
			fmt.Fprintf(b, "dmloop_guard_check_seconds_bucket{full=\"%t\",le=\"%g\"} %d\n", full, bound, sum)
		}
		fmt.Fprintf(b, "dmloop_guard_check_seconds_bucket{full=\"%t\",le=\"+Inf\"} %d\n", full, h.n)
		fmt.Fprintf(b, "dmloop_guard_check_seconds_sum{full=\"%t\"} %g\n", full, h.sum)
		fmt.Fprintf(b, "dmloop_guard_check_seconds_count{full=\"%t\"} %d\n", full, h.n)
	}
	head(b, "dmloop_guard_denials_total", "counter", "Accesses to images that were denied to others.")
	for _, k := range sortedKeys(denied) {
		fmt.Fprintf(b, "dmloop_guard_denials_total{kind=%q} %d\n", k, denied[k])
	}
	head(b, "dmloop_guard_differences_total", "counter", "Mappings found different, by reason and what became of them.")
	for _, k := range sortedKeys(c.stops) {
		fmt.Fprintf(b, "dmloop_guard_differences_total{%s} %d\n", k, c.stops[k])
	}
}

func head(b *strings.Builder, name, kind, help string) {
	fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func sortedKeys[K ~string, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool { return keys[i] < keys[j] })
	return keys
}

// ErrMetricsAddress says that metrics are not served at such an address.
var ErrMetricsAddress = errors.New("use 127.0.0.1:PORT, [::1]:PORT or unix:PATH")

// listenMetrics opens "unix:PATH", or "ADDRESS:PORT" where ADDRESS is a loopback
// address: the metrics name images and are nobody else's business.
func listenMetrics(where string) (net.Listener, error) {
	if where == "" {
		return nil, nil
	}
	if path, ok := strings.CutPrefix(where, "unix:"); ok {
		if path == "" { // net would take a name of its own choice
			return nil, fmt.Errorf("%w: unix: has no path", ErrMetricsAddress)
		}
		// A socket that nobody listens on is an earlier guard's. Anything else is
		// somebody's, and in the way.
		if conn, err := net.Dial("unix", path); err == nil {
			conn.Close()
		} else if info, serr := os.Lstat(path); serr == nil && info.Mode().Type() == fs.ModeSocket && errors.Is(err, unix.ECONNREFUSED) {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		mask := unix.Umask(0o177) // never open to others, not for a moment
		defer unix.Umask(mask)
		return net.Listen("unix", path)
	}
	addr, err := net.ResolveTCPAddr("tcp", where)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMetricsAddress, err)
	}
	if !addr.IP.IsLoopback() {
		return nil, fmt.Errorf("%w: %s is not a loopback address", ErrMetricsAddress, where)
	}
	return net.ListenTCP("tcp", addr)
}

// serveMetrics answers GET /metrics until stop is called.
func (d *Daemon) serveMetrics(l net.Listener) (stop func()) {
	ctx, stop := context.WithCancel(context.Background())
	d.running.Go(func() {
		p := page{path: "/metrics", text: d.Metrics}
		if l.Addr().Network() != "unix" && !d.MetricsPublic { // who may open a socket with a path, its mode says
			p.may = rootOnly
		}
		if err := servePage(ctx, l, p); err != nil {
			d.Log.Error("metrics are no longer served", "error", err)
		}
	})
	return stop
}
