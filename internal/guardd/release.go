package guardd

import (
	"context"
	"sync"
	"time"

	"dmloop/guard"
	"dmloop/internal/record"
)

// Between tries to finish a release: the command at work is given a moment, what
// cannot be finished is tried less and less often.
const (
	releaseSoon = time.Second // unless Config says otherwise
	releaseLate = time.Minute
)

// releases are the mappings that a command began to make or to release: when it was
// killed, or could not end, the guard ends it.
type releases struct {
	soon time.Duration
	wake chan struct{}

	mu    sync.Mutex
	names map[string]bool
}

func newReleases(soon time.Duration) *releases {
	return &releases{soon: soon, wake: make(chan struct{}, 1), names: map[string]bool{}}
}

// expect has the mapping of this name looked at soon. It does not wait.
func (r *releases) expect(name string) {
	r.mu.Lock()
	r.names[name] = true
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// pending lists the expected names, as long as keep says so.
func (r *releases) pending(keep func(name string) bool) (names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.names {
		if !keep(name) {
			delete(r.names, name)
			continue
		}
		names = append(names, name)
	}
	return names
}

func (r *releases) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.names)
}

// recordSaved is told the name of every record that is saved, or "" when some were
// missed.
func (d *Daemon) recordSaved(file string) {
	names := []string{file}
	if name, ok := record.NameOf(file); ok {
		names = []string{name}
	} else if file != "" {
		return // not a record
	} else if all, err := d.store.Names(); err == nil {
		names = all
	}
	for _, name := range names {
		m, err := d.store.Head(name)
		if err != nil {
			continue
		}
		d.mu.Lock()
		if mp := d.mappings[name]; mp != nil && mp.record.UUID == m.UUID {
			mp.saved = m
		}
		d.mu.Unlock()
		if d.Finish != nil && unfinished(m) {
			d.releases.expect(name)
		}
	}
}

// halfWay reports whether the record says that a command is at work on the mapping,
// or was.
func (d *Daemon) halfWay(name string) bool {
	m, err := d.store.Head(name)
	return err == nil && unfinished(m)
}

// unfinished reports whether a record is one that a command changes in several steps.
func unfinished(m record.Record) bool {
	return m.State == guard.Releasing || m.State == guard.Mapping || m.Growing != nil
}

// tendReleases ends what killed commands left. Finish takes the lock that every
// command holds from its first to its last step, so none of them is disturbed.
func (d *Daemon) tendReleases(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.releases.wake:
		}
		for wait := d.releases.soon; len(d.releases.pending(d.halfWay)) > 0; wait = min(2*wait, releaseLate) {
			if d.releases.wait(ctx, wait) {
				wait = d.releases.soon
			}
			if ctx.Err() != nil {
				return
			}
			d.finish(ctx)
		}
	}
}

// wait waits, but no longer than soon from the moment at which something is
// news. It reports whether something was.
func (r *releases) wait(ctx context.Context, d time.Duration) (news bool) {
	due := time.NewTimer(d)
	defer due.Stop()
	begun, wake := time.Now(), r.wake
	for {
		select {
		case <-ctx.Done():
			return news
		case <-due.C:
			return news
		case <-wake:
			news, wake = true, nil
			due.Reset(min(r.soon, d-time.Since(begun)))
		}
	}
}

// finish tries to end what is expected.
func (d *Daemon) finish(ctx context.Context) {
	names := d.releases.pending(d.halfWay)
	if len(names) == 0 {
		return
	}
	d.Log.Debug("finishing what a command left", "mappings", names)
	if err := d.Finish(ctx, &Own{d}); err != nil {
		d.Log.Debug("what a command left cannot be finished yet", "mappings", names, "error", err)
	}
	for _, name := range names {
		if !d.halfWay(name) {
			d.Log.Info("what a command left was finished", "mapping", name)
		}
	}
}
