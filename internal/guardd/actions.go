package guardd

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

	refused error     // why the kernel's claim could not be had again at last
	tried   time.Time // when that was
}

// claimAgain is how long the guard waits until it asks for a refused claim again: each
// try lifts the immutable flag for a moment, which is news about the image itself.
const claimAgain = time.Minute

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
	kinds := slices.DeleteFunc(a.ours(), func(k pin.Kind) bool {
		return !slices.Contains(lost, string(k)) || k == pin.Swap && pin.ClaimMoves(record.Image.Filesystem)
	})
	if len(kinds) == 0 {
		return fmt.Errorf("dmloop did not set the pins %v and leaves them to their owner", lost)
	}
	claim := slices.Contains(kinds, pin.Swap)
	if claim && a.refused != nil && time.Since(a.tried) < claimAgain {
		return errors.Join(a.refused, a.pin(others(kinds)))
	}
	err := a.pin(kinds)
	if err != nil && claim {
		// Everything has been undone then. What can be had without the claim is had.
		err = errors.Join(err, a.pin(others(a.ours())))
	}
	if err != nil {
		err = fmt.Errorf("setting the pins %v again: %w", lost, err)
	}
	if claim {
		a.refused, a.tried = err, time.Now()
	}
	if err != nil {
		return err
	}
	a.d.Log.Warn("lost pins were set again", "mapping", record.Name, "pins", lost)
	return nil
}

// ours lists the pins that the record says dmloop set.
func (a *actions) ours() (kinds []pin.Kind) {
	for _, p := range a.m.record.Pins {
		if p.Ours {
			kinds = append(kinds, pin.Kind(p.Kind))
		}
	}
	return kinds
}

// others leaves out the kernel's claim.
func others(kinds []pin.Kind) []pin.Kind {
	return slices.DeleteFunc(kinds, func(k pin.Kind) bool { return k == pin.Swap })
}

// pin sets pins of the image, if any.
func (a *actions) pin(kinds []pin.Kind) error {
	if len(kinds) == 0 {
		return nil
	}
	f := a.m.image.File()
	_, err := pin.Set(f, a.m.record.Image.Filesystem, a.m.record.Name, kinds, func(on bool) error {
		if on {
			return unless(swap.ErrActive, swap.Claim(f))
		}
		return unless(swap.ErrNotActive, swap.Release(f))
	})
	return err
}

// unless returns err, or nil when it says that there was nothing to do.
func unless(done, err error) error {
	if errors.Is(err, done) {
		return nil
	}
	return err
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
	if guard.Worst(r.Findings) == guard.Different {
		a.d.hintDevice(a.m.record.Device, "the mapping "+name+" was found different") // images within it lie elsewhere too
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
