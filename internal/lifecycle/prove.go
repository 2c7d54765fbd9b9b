package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/gate"
	"dmloop/internal/image"
	"dmloop/internal/observe"
	"dmloop/internal/pin"
	"dmloop/internal/survey"
)

// proveStill reads everything once more, now that the pins hold and the kernel has
// accepted the table, and compares: the device goes live only on what is true now.
func (j *mapJob) proveStill(ctx context.Context) error {
	cache, err := j.img.DropCache(ctx)
	if err != nil {
		return err
	}
	if problems := emptyCache(cache); len(problems) > 0 {
		return fault.Refuse(j.survey.Path, problems)
	}
	if err := j.provePins(); err != nil {
		return err
	}
	if err := j.proveLayout(); err != nil {
		return err
	}
	st, err := j.img.Status()
	if err != nil {
		return err
	}
	if st.Identity != j.survey.Identity || st.Links == 0 { // without a name its blocks would be free when we close it
		return fault.Refuse(j.survey.Path, []extents.Problem{survey.Unstable("the file's size or identity changed, or it was deleted")})
	}
	host, err := j.conn.Table(dm.ByDevice(j.survey.Stack.Host))
	if err != nil {
		return fmt.Errorf("reading the table of the host device again: %w", err)
	}
	if diff := j.m.Table.Standing(j.survey.Stack.HostTable, host); diff != "" {
		return fault.Refuse(j.survey.Path, []extents.Problem{survey.Unstable("the host device was changed: " + diff)})
	}
	return j.proveNoneWaits()
}

// provePins proves that the flags are still set that were when the image was pinned: who
// waited for a lease of ours may have cleared one, root or, on f2fs, anybody. It does not
// ask about the claim: that would end the lease, and an image with a claim has none.
func (j *mapJob) provePins() error {
	now, err := pin.InForce(j.img.File(), j.m.Image.Filesystem)
	if err != nil {
		return err
	}
	if j.m.Gate == guard.GateBPF {
		gated, err := gate.InForce(j.m.Image.FileID, j.m.Device)
		if err != nil {
			return err
		}
		if gated {
			now = append(now, pin.BPF)
		}
	}
	for _, p := range j.m.Pins {
		if k := p.Kind; k != pin.Swap && !slices.Contains(now, k) {
			return j.cleared(k)
		}
	}
	return nil
}

// proveClaim proves that the kernel still holds a sealed image: the layout was read
// while it did, and stands while it does.
func (j *mapJob) proveClaim(context.Context) error {
	if !slices.Contains(j.m.PinKinds(), pin.Swap) {
		return nil
	}
	active, err := j.probe.Active()
	if err != nil {
		return fmt.Errorf("proving that the kernel holds the image as a swap file: %w", err)
	}
	if !active {
		return fault.Refuse(j.survey.Path, []extents.Problem{{Rule: extents.Unpinnable,
			Message: "somebody ended the kernel's hold on the image while it was being mapped (swapoff)",
			Remedy:  advice.SeeSwapoff}})
	}
	return nil
}

// proveLayout compares the current layout with the one in the table.
func (j *mapJob) proveLayout() error {
	same, err := extents.Same(j.img.File(), j.survey.Read)
	if same || err != nil {
		return err
	}
	now, err := extents.Read(j.img.File())
	if err != nil {
		return err
	}
	if problems := now.Problems(j.survey.Facts.BlockSize, 0); len(problems) > 0 {
		return fault.Refuse(j.survey.Path, problems)
	}
	if diff := extents.Diff(j.m.Layout, now.Clip().Merge()); diff != "" {
		return fault.Refuse(j.survey.Path, []extents.Problem{survey.Unstable(diff)})
	}
	return nil
}

// proveAlone asks, as the last thing before the device goes live, whether the lease is
// whole still. Somebody who waits for its end began to open the image before it was
// pinned: the opener is let in and, when it has gone, everything is proved again.
func (j *mapJob) proveAlone(ctx context.Context) error {
	if j.lease == nil {
		return nil
	}
	for end := time.Now().Add(j.patience.openers); ; {
		whole, err := j.lease.Whole()
		if err := errors.Join(err, j.dropLease()); err != nil || whole {
			return err
		}
		if j.lease, err = j.soleOpener(ctx, j.img, j.survey.Path, time.Until(end)); err != nil {
			return j.openError(err)
		}
		if err := j.proveStill(ctx); err != nil {
			return err
		}
		if time.Now().After(end) {
			return fault.Refuse(j.survey.Path, []extents.Problem{{Rule: extents.OpenElsewhere,
				Message: "somebody keeps opening the file", Remedy: advice.SeeOpeners}})
		}
	}
}

func (j *mapJob) dropLease() error {
	if j.lease == nil {
		return nil
	}
	err := j.lease.Release()
	j.lease = nil
	return err
}

// lookOnceMore asks without a guard what the guard's first check asks: whether somebody
// has the image open for writing all the same. That opener would have passed the check of the
// flag before it was set, and slept since then where nothing makes it sleep.
func (j *mapJob) lookOnceMore(context.Context) error {
	watched := !j.options.NoGuard && !j.options.GuardLater
	if watched || slices.Contains(j.m.PinKinds(), pin.Swap) || observe.OthersOpen(j.img) != guard.Writers {
		return nil
	}
	return fault.Refuse(j.survey.Path, []extents.Problem{{Rule: extents.OpenElsewhere,
		Message: "somebody opened the file for writing while it was being mapped", Remedy: advice.SeeOpeners}})
}

// clearedSince returns a pin that was wanted, is ours and is not in force.
func clearedSince(wanted, ours, inForce []pin.Kind) (pin.Kind, bool) {
	for _, k := range wanted {
		if slices.Contains(ours, k) && !slices.Contains(inForce, k) {
			return k, true
		}
	}
	return "", false
}

// cleared says that a pin of ours went while map was at work.
func (j *mapJob) cleared(k pin.Kind) error {
	return fault.Refuse(j.survey.Path, []extents.Problem{{Rule: extents.Unpinnable,
		Message: fmt.Sprintf("somebody cleared the pin %s while the image was being mapped", k),
		Remedy:  advice.SeeChattr}})
}

// emptyCache is the rule dirty-cache at the moment of truth: not one page may be
// left, since a clean one would hide from readers of the file what the device
// writes. The lease has shown that nobody has the file mapped.
func emptyCache(c image.CacheState) []extents.Problem {
	problems := c.Problems()
	if len(problems) == 0 && c.Cached > 0 {
		problems = []extents.Problem{{Rule: extents.DirtyCache,
			Message: fmt.Sprintf("%d pages of the file stay in memory after they were dropped", c.Cached),
			Remedy:  advice.SeeReaders}}
	}
	return problems
}
