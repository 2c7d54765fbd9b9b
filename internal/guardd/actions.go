package guardd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/internal/claim"
	"dmloop/internal/dm"
	"dmloop/internal/frozen"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
	"dmloop/internal/observe"
	"dmloop/internal/pin"
)

// actions carries out what package guard decides about one mapping.
type actions struct {
	d *Daemon
	m *mapping

	refused error     // why the kernel's claim could not be taken again at last
	tried   time.Time // when that was
	proof   *bool     // whether nobody could write to the image when pins were set again; nil before
}

// thawPatience is how long a file system may take to say that it takes changes.
const thawPatience = time.Second

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
// dmloop's to set. When it fails, those that are in force stay so, and the next check
// asks again who has the image open, as long as the kernel does not hold it.
func (a *actions) Restore(ctx context.Context, lost []guard.PinKind) error {
	rec := a.m.record
	if slices.Contains(lost, guard.PinBPF) {
		if err := a.gateAgain(); err != nil || len(lost) == 1 {
			return err
		}
	}
	kinds := slices.DeleteFunc(a.ours(), func(k pin.Kind) bool {
		return !slices.Contains(lost, k) || k == pin.Swap && fstype.Of(rec.Image.Filesystem).SwapMoves
	})
	if len(kinds) == 0 {
		return fmt.Errorf("dmloop did not set the pins %v and leaves them to their owner", lost)
	}
	claim := slices.Contains(kinds, pin.Swap)
	if claim && a.refused != nil && time.Since(a.tried) < claimAgain {
		return errors.Join(a.refused, a.pin(ctx, pin.WithoutClaim(kinds)))
	}
	err := a.pin(ctx, kinds)
	if err != nil && claim { // what can be set without the claim is set
		err = errors.Join(err, a.pin(ctx, pin.WithoutClaim(a.ours())))
	}
	now := observe.OthersOpen(a.m.image) // writers, too, while the kernel holds it
	proof := now == guard.Alone || now == guard.Readers
	a.proof = &proof
	if err != nil {
		err = fmt.Errorf("setting the pins %v again: %w", lost, err)
	}
	if claim {
		a.refused, a.tried = err, time.Now()
	}
	if err != nil {
		return err
	}
	a.d.Log.Warn("lost pins were set again", "mapping", rec.Name, "pins", lost)
	return nil
}

// ours lists the pins that the record says dmloop set.
func (a *actions) ours() []pin.Kind { return a.m.record.OurPins() }

// briefly is how long the guard waits for those who have an image open: its checks of
// the mapping wait meanwhile.
const briefly = 500 * time.Millisecond

// pin sets pins of the image, if any.
func (a *actions) pin(ctx context.Context, kinds []pin.Kind) error {
	if len(kinds) == 0 {
		return nil
	}
	if err := frozen.Ask(ctx, int(a.m.image.File().Fd()), thawPatience); err != nil {
		return err // the next check tries again
	}
	rec := a.m.record
	if slices.Contains(kinds, pin.Swap) && rec.Gate == guard.GateBPF {
		if err := a.d.gatePinning(rec, true); err != nil {
			return err
		}
		defer a.d.gatePinning(rec, false) //nolint:errcheck // the next check finds out
	}
	_, err := pin.Set(a.m.image.File(), rec.Image.Filesystem, rec.Name, kinds, &claim.Claim{
		Context: ctx, Image: a.m.image, Log: a.d.Log, Unsafe: rec.Unsafe, Gated: rec.Gate == guard.GateBPF, Wait: image.Wait{Patience: briefly}})
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
	state := r.Decision.State
	if state != a.m.record.State || r.Checks > 1 {
		a.d.records.update(a.m.record, state, reason, a.proof)
	}
}
