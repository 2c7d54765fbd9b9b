// Package guardd is the guard's process: it watches every mapping of a state
// folder, serves the clients of its socket, and carries out what package guard
// decides. There is one per state directory.
//
// It never waits for the state directory's lock on the way to an answer or a
// tear-down: map and unmap hold that lock while they wait for the guard. Records are
// brought up to date afterwards, by a goroutine of their own.
package guardd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/internal/dm"
	"dmloop/internal/guardrpc"
	"dmloop/internal/observe"
	"dmloop/internal/ration"
	"dmloop/internal/record"
	"dmloop/internal/watch"
)

// ErrRunning says that another guard holds the lock of the state directory.
var ErrRunning = errors.New("a guard is running already")

// Mapper is what the guard does with device-mapper.
type Mapper interface {
	observe.Mapper
	ReplaceNow(dm.Ref, dmtable.Table, uint32) (dm.Info, error)
	Suspend(dm.Ref, dm.SuspendOptions) (dm.Info, error)
}

// Config is what a guard is started with.
type Config struct {
	Dir      string
	Mapper   Mapper
	Sysfs    string // where devices below images are looked at; empty: they are not
	Log      *slog.Logger
	Pace     guard.Pace
	IdleExit time.Duration // end after so long without a mapping; 0 is never
	Metrics  string        // where to serve metrics: "unix:PATH" or a loopback "ADDRESS:PORT"; empty is nowhere
	// MetricsPublic lets every user of the machine read the metrics of a loopback address,
	// and not only root.
	MetricsPublic bool
	// Finish ends what killed commands left and what could not be released then. Nil
	// leaves it to the next command.
	Finish func(context.Context, *Own) error

	releaseSoon time.Duration // for tests; 0 is the usual
}

// Daemon is a running guard.
type Daemon struct {
	Config
	store    *record.Store
	home     *home
	lost     chan struct{} // tells that something was removed from the folder
	metrics  net.Listener  // nil when nobody asked for metrics
	started  time.Time
	counts   *counters
	budget   *guard.Budget
	records  *recorder
	releases *releases
	hosts    *observe.Hosts

	gate    *watch.Gate // nil where the kernel has none
	denies  guardrpc.Answer
	gateWhy string
	files   *watch.Files // nil when inotify failed

	stopSources func()

	mu       sync.Mutex
	mappings map[string]*mapping
	locks    nameLocks            // one Add or Drop of a name at a time
	marks    map[guard.FileID]int // how many mappings and sessions need the gate's mark
	sessions map[*guardrpc.Session]*session
	busy     time.Time // when there last was a mapping or a client
	requests int       // under way
	ending   bool      // idle for long enough: no request is taken any more
	losses   ration.Ration
	unlogged int // losses since the last one that was logged
	running  sync.WaitGroup
}

// Run is the life of a guard: it takes the lock, begins to listen, compares and
// adopts what is mapped, tells the service manager that it is ready, and serves
// until ctx ends. It leaves all mappings as they are.
func Run(ctx context.Context, c Config) error {
	d, err := newDaemon(c)
	if err != nil {
		return err
	}
	defer d.close()
	inner, cancel := context.WithCancel(ctx)
	defer d.stopWatches()
	defer cancel()
	d.openKernelGate()
	defer d.closeKernelGate()
	d.running.Go(func() { d.followKernelGate(inner) })
	c.Log.Info("the guard starts", "pid", os.Getpid(), "folder", c.Dir, "denies", d.denies, "interval", c.Pace.Tick)
	d.adoptAll(inner)
	if err := d.listen(d.home); err != nil {
		return err
	}
	if d.metrics != nil {
		defer d.serveMetrics(d.metrics)()
	}
	d.running.Go(func() { d.tend(inner, cancel) })
	if c.Finish != nil {
		d.running.Go(func() { d.tendReleases(inner) })
	}
	err = d.live(inner, d.home, d.lost)
	d.sayGoodbye(ctx)
	return err
}

// newDaemon takes what a guard needs before it watches anything: one that cannot do all it was
// asked for does nothing.
func newDaemon(c Config) (*Daemon, error) {
	store, err := record.Open(c.Dir, true)
	if err != nil {
		return nil, err
	}
	lock, err := lockGuard(c.Dir)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	metrics, err := listenMetrics(c.Metrics)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("metrics: %w", err), lock.Close(), store.Close())
	}
	spare(c.Log)
	d := &Daemon{
		Config: c, store: store, home: &home{lock: lock}, lost: make(chan struct{}, 1), metrics: metrics,
		started: time.Now(), counts: newCounters(), budget: guard.NewBudget(c.Pace),
		mappings: map[string]*mapping{}, marks: map[guard.FileID]int{},
		sessions: map[*guardrpc.Session]*session{}, busy: time.Now(), releases: newReleases(cmp.Or(c.releaseSoon, releaseSoon)), hosts: &observe.Hosts{},
		losses: ration.Ration{Burst: lossBurst, Every: lossPause},
	}
	d.stopSources = d.openSources()
	d.watchFolder(d.home, d.lost)
	d.records = newRecorder(store, c.Log)
	return d, nil
}

// close gives back what newDaemon took, last first: what is still to be recorded needs the store,
// and another guard may start once the lock is gone.
func (d *Daemon) close() {
	d.records.stop()
	d.home.unwatch()
	d.stopSources()
	if d.metrics != nil {
		d.metrics.Close()
	}
	d.home.lock.Close()
	d.store.Close()
}

// lockGuard takes the lock that makes the guard the only one. The kernel drops it
// when the process ends.
func lockGuard(dir string) (*os.File, error) {
	path := filepath.Join(dir, guardrpc.LockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the guard's lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", path, ErrRunning)
		}
		return nil, fmt.Errorf("%s: flock: %w", path, err)
	}
	return f, nil
}

// spare asks the kernel to kill others first when memory runs out: with the guard,
// its denials would go.
func spare(log *slog.Logger) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0); err != nil {
		log.Debug("the guard is killed like any other process when memory runs out", "error", err)
	}
	// Threads begin with the priority of the one that starts them, and one may be starting
	// while they are listed: hence twice.
	for range 2 {
		tasks, err := os.ReadDir("/proc/self/task")
		for _, task := range tasks {
			tid, _ := strconv.Atoi(task.Name())
			err = errors.Join(err, unix.Setpriority(unix.PRIO_PROCESS, tid, promptly))
		}
		if err != nil {
			log.Debug("the guard waits for the processor like any other process", "error", err)
		}
	}
}

// promptly is the guard's nice value: opens wait for its answers, however many processes
// want the processors.
const promptly = -10

// sayGoodbye logs what is left behind.
func (d *Daemon) sayGoodbye(ctx context.Context) {
	names := d.names()
	notifyStopping()
	switch {
	case len(names) > 0:
		d.Log.Warn("the guard ends and leaves its mappings as they are, unwatched", "mappings", names)
	case ctx.Err() == nil:
		d.Log.Info("the guard ends: there has been nothing to watch", "for", d.IdleExit)
	default:
		d.Log.Info("the guard ends: nothing was watched")
	}
}

// names lists the watched mappings.
func (d *Daemon) names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := make([]string, 0, len(d.mappings))
	for name := range d.mappings {
		names = append(names, name)
	}
	return names
}

// stopWatches ends every watch and waits for its end.
func (d *Daemon) stopWatches() {
	for _, name := range d.names() {
		d.forget(name)
	}
}
