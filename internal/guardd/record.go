package guardd

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"dmloop/guard"
	"dmloop/internal/record"
)

// recorder brings records up to date with what the guard found. It waits for the
// state directory's lock as long as it takes, in a goroutine of its own.
type recorder struct {
	store  *record.Store
	log    *slog.Logger
	cancel context.CancelFunc
	done   chan struct{}
	wake   chan struct{}

	mu      sync.Mutex
	pending map[string]change // by uuid; the last one counts
}

type change struct {
	name, uuid string
	state      guard.State
	reason     string
	proof      *bool // what the record says of the proof from now on; nil leaves it
}

// goodbye is how long the end of the guard waits for records to be written.
const goodbye = 5 * time.Second

func newRecorder(store *record.Store, log *slog.Logger) *recorder {
	ctx, cancel := context.WithCancel(context.Background())
	r := &recorder{
		store: store, log: log, cancel: cancel,
		done: make(chan struct{}), wake: make(chan struct{}, 1), pending: map[string]change{},
	}
	go r.run(ctx)
	return r
}

// update has the state of m's record changed soon, and its proof unless that is nil. It
// does not wait.
func (r *recorder) update(m record.Record, state guard.State, reason string, proof *bool) {
	r.mu.Lock()
	r.pending[m.UUID] = change{name: m.Name, uuid: m.UUID, state: state, reason: reason, proof: proof}
	r.mu.Unlock()
	r.signal()
}

func (r *recorder) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// stop writes what is pending, unless a command holds the lock for too long.
func (r *recorder) stop() {
	deadline := time.After(goodbye)
	for r.waiting() {
		select {
		case <-deadline:
			r.log.Error("some records do not say what the guard found: another dmloop command holds the lock")
			r.cancel()
			<-r.done
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
	r.cancel()
	<-r.done
}

func (r *recorder) waiting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pending) > 0
}

func (r *recorder) run(ctx context.Context) {
	defer close(r.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		for r.waiting() {
			unlock, err := r.store.Lock(ctx)
			if err != nil {
				if ctx.Err() != nil {
					return
				}
				r.log.Error("a record cannot be brought up to date", "error", err)
				time.Sleep(time.Second)
				continue
			}
			r.writeAll()
			unlock()
		}
	}
}

// writeAll writes everything pending. The caller holds the lock.
func (r *recorder) writeAll() {
	r.mu.Lock()
	batch := r.pending
	r.pending = map[string]change{}
	r.mu.Unlock()
	for _, c := range batch {
		if err := r.write(c); err != nil {
			r.log.Error("a record cannot be brought up to date", "mapping", c.name, "error", err)
		}
	}
}

// write changes one record, unless it is gone, is another mapping's by now, or is
// being taken down by a command.
func (r *recorder) write(c change) error {
	m, err := r.store.Head(c.name)
	if errors.Is(err, record.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if m.UUID != c.uuid || m.State == guard.Releasing || m.State == guard.Mapping {
		return nil
	}
	if m.State == c.state && m.Reason == c.reason && (c.proof == nil || *c.proof == m.Proof) {
		return nil
	}
	if c.proof != nil {
		m.Proof = *c.proof
	}
	m.State, m.Reason = c.state, c.reason
	return r.store.SaveHead(m)
}
