package guardd

import (
	"context"
	"fmt"
	"time"

	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/internal/dm"
	"dmloop/internal/manifest"
	"dmloop/internal/pin"
	"dmloop/internal/swap"
)

// actions carries out what package guard decides about one mapping.
type actions struct {
	d *Daemon
	m *mapping
}

// Act tears the mapping down, or suspends it. The error table is loaded only now: one
// that waited in the inactive slot would go live with any `dmsetup resume`.
func (a *actions) Act(_ context.Context, how guard.Policy, reason string) error {
	ref := dm.ByUUID(a.m.record.UUID)
	start := time.Now()
	var err error
	if how == guard.OnChangeSuspend {
		_, err = a.d.Mapper.Suspend(ref, dm.SuspendOptions{NoFlush: true, SkipLockFS: true})
	} else {
		size := dmtable.Sectors(a.m.record.Size) / dmtable.SectorSize
		_, err = a.d.Mapper.ReplaceNow(ref, dmtable.ErrorTable(size), 0)
	}
	if err != nil {
		return fmt.Errorf("the mapping could not be stopped: %w", err)
	}
	a.d.Log.Error("the mapping was stopped", "mapping", a.m.record.Name, "policy", how, "reason", reason, "took", time.Since(start))
	return nil
}

// Restore sets lost pins again. Pins that were there before dmloop came are not
// dmloop's to set.
func (a *actions) Restore(_ context.Context, lost []string) error {
	record := a.m.record
	var kinds []pin.Kind
	for _, p := range record.Pins {
		for _, l := range lost {
			if p.Kind == l && p.Ours {
				kinds = append(kinds, pin.Kind(l))
			}
		}
	}
	if len(kinds) == 0 {
		return fmt.Errorf("dmloop did not set the pins %v and leaves them to their owner", lost)
	}
	f := a.m.image.File()
	claim := func(on bool) error {
		if on {
			return swap.Claim(f)
		}
		return swap.Release(f)
	}
	if _, err := pin.Set(f, record.Image.Filesystem, record.Name, kinds, claim); err != nil {
		return fmt.Errorf("setting the pins %v again: %w", lost, err)
	}
	a.d.Log.Warn("lost pins were set again", "mapping", record.Name, "pins", lost)
	return nil
}

// Checked counts a check.
func (a *actions) Checked(full bool, took time.Duration) { a.d.counts.checked(full, took) }

// Report logs what changed and has the record brought up to date.
func (a *actions) Report(r guard.Report) {
	name := a.m.record.Name
	for _, f := range r.Findings {
		a.d.Log.Warn("found", "mapping", name, "kind", f.Kind, "severity", f.Severity.String(), "what", f.Message, "cause", r.Cause)
	}
	if r.ActError != "" {
		a.d.Log.Error("what was decided could not be done", "mapping", name, "state", r.Decision.State, "error", r.ActError)
	}
	if len(r.Findings) == 0 && r.Checks > 1 {
		a.d.Log.Info("the mapping is as it was recorded", "mapping", name, "grade", r.Grade)
	}
	switch r.Decision.State {
	case guard.Failed, guard.Suspended, guard.Stale:
		for _, f := range r.Findings {
			if f.Severity == guard.Different {
				a.d.counts.stopped(f.Kind, r.Decision.State)
			}
		}
	}
	reason := r.Decision.Reason
	if r.ActError != "" {
		reason += "; " + r.ActError
	}
	state := manifest.State(r.Decision.State)
	if state != a.m.record.State || r.Checks > 1 {
		a.d.records.update(a.m.record, state, reason)
	}
}
