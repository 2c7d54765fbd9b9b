package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/backing"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/pin"
	"dmloop/internal/record"
)

// settleGrowth finishes or undoes what a killed grow left of a mapping. Once the record has the
// new table, or the longer file has its pins again, it goes forward; before that the file is
// cut again.
func (s *System) settleGrowth(ctx context.Context, t *turn, m record.Record) error {
	j, err := s.growthOf(ctx, t, m)
	if err != nil {
		return err
	}
	defer j.img.Close()
	if m.Image.Size == m.Growing.To {
		return j.finishRecorded(ctx)
	}
	if m.State != guard.Healthy && m.State != guard.Weakened {
		return j.keepLonger(ctx)
	}
	id, err := j.img.Identity()
	if err != nil {
		return err
	}
	inForce, err := pin.InForce(j.img.File(), m.Image.Filesystem)
	if err != nil {
		return err
	}
	pinned := !slices.Contains(m.PinKinds(), pin.Immutable) || slices.Contains(inForce, pin.Immutable)
	if pinned && id.Size == m.Growing.To {
		j.gated = j.gateAgain(m, false)
		if err = j.prove(ctx); err == nil {
			err = j.load()
		}
		if err == nil {
			return j.exchange(ctx)
		}
		s.log.Debug("the longer image is cut again", "mapping", m.Name, "why", err)
	}
	j.lifted = !pinned
	return j.undo(ctx)
}

// keepLonger ends the intent of a mapping that was found different meanwhile. Its blocks may
// not be its own any more, so none are given back.
func (j *growth) keepLonger(ctx context.Context) error {
	return errors.Join(j.pinAgain(ctx), j.settled(ctx))
}

// undo makes the image of a mapping as long as it was, and pins it again. The new blocks are
// given back only where no table names them.
func (j *growth) undo(ctx context.Context) error {
	if err := j.deleted(); err != nil {
		return err
	}
	m := j.m
	if err := j.withdraw(); err != nil {
		return fault.Wrap(m.Name, "the image stays longer than its mapping", err)
	}
	if head, err := j.store.Head(m.Name); err != nil || head.Image.Size != m.Image.Size {
		if err := errors.Join(err, j.store.Save(m)); err != nil {
			return err
		}
	}
	if err := j.cut(); err != nil {
		return errors.Join(fault.Wrap(m.Name, "the image stays longer than its mapping", err), j.pinAgain(ctx))
	}
	err := j.pinAgain(ctx)
	if err == nil && slices.Contains(m.PinKinds(), pin.Immutable) {
		err = pinningError(m.Image.Path, j.proveOnce(ctx, j.img, m.Image.Path))
		j.m.Proof = err == nil
	}
	return errors.Join(err, j.settled(ctx))
}

// deleted stops a mapping whose image lost its last name while the flag was off: its blocks are
// free once nobody has it open.
func (j *growth) deleted() error {
	st, err := j.img.Status()
	if err != nil || st.Links > 0 {
		return err
	}
	_, err = j.conn.ReplaceNow(dm.ByUUID(j.m.UUID), dmtable.ErrorTable(j.m.Table.Size()), 0)
	if errors.Is(err, dm.ErrNotFound) {
		return nil
	}
	j.m.State, j.m.Reason = guard.Failed, "the image was deleted while it was made longer"
	return err
}

// withdraw drops the table that waits and proves that the live one names no new block: it is
// the old one, or shows nothing.
func (j *growth) withdraw() error {
	ref := dm.ByUUID(j.m.UUID)
	info, live, err := j.conn.State(ref)
	if errors.Is(err, dm.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if !live.Equal(j.m.Table) && slices.ContainsFunc(live, func(r dmtable.Row) bool { return r.Target != dmtable.Error }) {
		return &fault.Error{Class: fault.StaleMapping, Subject: j.m.Name, Message: "the device has not the table of the mapping", Remedy: advice.SeeTable.Of(j.m.Name)}
	}
	if !info.InactiveTable {
		return nil
	}
	info, err = j.conn.Clear(ref)
	if err == nil && info.InactiveTable {
		err = errors.New("a table still waits to be resumed")
	}
	return err
}

// cut gives back what is new, with the flag lifted for it.
func (j *growth) cut() error {
	m := j.m
	id, err := j.img.Identity()
	if err != nil {
		return err
	}
	if id.Size == m.Growing.From && !j.lifted || id.Size < m.Growing.From {
		return nil
	}
	if err := j.surveyor().NotLive(j.img, m.Image.Filesystem, m.UUID); err != nil {
		return err
	}
	j.gated = j.gateAgain(m, true)
	j.lifted = true
	if err := pin.Lift(j.img.File(), m.Image.Filesystem); err != nil {
		return err
	}
	writable, err := j.writable()
	if err != nil {
		return err
	}
	return errors.Join(backing.Shorten(writable.File(), m.Growing.From), writable.Close())
}

// finishRecorded makes the table live that the record has, unless it is so already.
func (j *growth) finishRecorded(ctx context.Context) error {
	_, live, err := j.conn.State(dm.ByUUID(j.m.UUID))
	if err != nil && !errors.Is(err, dm.ErrNotFound) {
		return err
	}
	sound := j.m.State == guard.Healthy || j.m.State == guard.Weakened
	if live.Equal(j.m.Table) || !sound || !j.m.Table.Begins(live) { // of anything else the checks say what it is
		return j.settled(ctx)
	}
	if err := j.asRecorded(); err != nil {
		_, clear := j.conn.Clear(dm.ByUUID(j.m.UUID))
		return errors.Join(err, clear, j.settled(ctx))
	}
	j.gated = j.gateAgain(j.m, false)
	j.now = j.m
	if err := j.load(); err != nil {
		return err
	}
	return j.exchange(ctx)
}

// asRecorded proves that the image lies where the record says and that its pins are in force,
// as they were when the record was saved.
func (j *growth) asRecorded() error {
	layout, err := extents.Read(j.img.File())
	if err != nil {
		return err
	}
	if diff := extents.Diff(j.m.Layout, layout.Clip().Merge()); diff != "" {
		return fmt.Errorf("the image changed since it was made longer: %s", diff)
	}
	inForce, err := pin.InForce(j.img.File(), j.m.Image.Filesystem)
	if err != nil {
		return err
	}
	for _, k := range j.m.PinKinds() {
		if k != pin.BPF && !slices.Contains(inForce, k) {
			return fmt.Errorf("the pin %s is gone since the image was made longer", k)
		}
	}
	return nil
}
