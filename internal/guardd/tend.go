package guardd

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"dmloop/guard"
)

// notify tells the service manager; without one it does nothing.
func (d *Daemon) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		d.Log.Debug("the service manager does not listen", "error", err)
	}
}

func notifyStopping() { _, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) }

// tend is the guard's own heartbeat: it says READY, feeds the service manager's
// watchdog while the checks go on, keeps the status line, forgets what is gone, and
// ends an idle guard.
func (d *Daemon) tend(ctx context.Context, end func()) {
	beat := 10 * time.Second
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		d.Log.Warn("the service manager's watchdog is not fed", "error", err)
	}
	if limit > 0 {
		beat = min(beat, limit/2)
	}
	if d.IdleExit > 0 {
		beat = min(beat, max(d.IdleExit/4, 10*time.Millisecond))
	}
	d.notify(daemon.SdNotifyReady)
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	last := ""
	for {
		d.forgetGone()
		if line := "STATUS=" + d.statusLine(); line != last {
			d.notify(line)
			last = line
		}
		if limit > 0 && d.alive() {
			d.notify(daemon.SdNotifyWatchdog)
		}
		if d.idle() {
			notifyStopping() // before the socket goes: whoever has the manager start a guard then means another one
			end()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// statusLine sums up in one line.
func (d *Daemon) statusLine() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	healthy := 0
	for _, m := range d.mappings {
		if m.watch.Last().Decision.State == guard.Healthy {
			healthy++
		}
	}
	return fmt.Sprintf("%d mappings, %d of them healthy; denies opens: %s", len(d.mappings), healthy, d.denies)
}

// alive reports whether no check is overdue. A guard whose checks stand still is
// better restarted.
func (d *Daemon) alive() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.mappings {
		r := m.watch.Last()
		if r.Checks > 0 && !r.Settled() && time.Since(r.Time) > 2*guard.StuckAfter {
			d.Log.Error("a check is overdue", "mapping", m.record.Name, "since", r.Time)
			return false
		}
	}
	return true
}

// idle reports whether there has been nothing to do for long enough to end. From then on
// no request is taken.
func (d *Daemon) idle() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.sessions {
		if len(s.images) > 0 {
			d.busy = time.Now()
		}
	}
	if len(d.mappings) > 0 || d.requests > 0 || d.Finish != nil && d.releases.count() > 0 {
		d.busy = time.Now()
	}
	d.ending = d.IdleExit > 0 && time.Since(d.busy) > d.IdleExit
	return d.ending
}
