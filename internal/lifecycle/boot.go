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
	"dmloop/internal/blockdev"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/pin"
	"dmloop/internal/record"
	"dmloop/internal/survey"
	"dmloop/internal/swap"
)

// Recorded returns the record of a sound mapping, named by name or image, and the
// mount that its image lies on. A mapping that is not as it was recorded is an error.
func (s *System) Recorded(ctx context.Context, target string) (record.Record, image.Mount, error) {
	var none image.Mount
	checked, err := s.Verify(ctx, target)
	if err != nil {
		return record.Record{}, none, err
	}
	store, err := s.openStore(false)
	if err != nil {
		return record.Record{}, none, err
	}
	if store == nil || len(checked) != 1 {
		return record.Record{}, none, &fault.Error{Class: fault.NotFound, Subject: target, Message: "no such mapping", Remedy: advice.SeeList}
	}
	defer store.Close()
	if checked[0].State != guard.Healthy {
		return record.Record{}, none, &fault.Error{Class: fault.StaleMapping, Subject: target,
			Message: fmt.Sprintf("the mapping is %s: %s", checked[0].State, checked[0].Reason), Remedy: advice.MapAgain}
	}
	m, err := store.Load(checked[0].Name)
	if err != nil {
		return record.Record{}, none, err
	}
	if m.Growing != nil {
		return record.Record{}, none, &fault.Error{Class: fault.Busy, Subject: target, Message: "its image is being made longer", Remedy: advice.SeeList}
	}
	img, err := s.openRecorded(ctx, m.Image)
	if err != nil {
		return record.Record{}, none, fault.Wrap(target, "", err)
	}
	defer img.Close()
	facts, err := img.Facts()
	return m, facts.Mount, fault.Wrap(target, "", err)
}

// LiveTable returns the rows of a mapping's device as the kernel has them.
func (s *System) LiveTable(of Status) (dmtable.Table, error) {
	conn, err := s.mapper()
	if err != nil {
		return nil, err
	}
	table, err := conn.Table(dm.ByUUID(of.UUID))
	return table, fault.Wrap(of.Name, "", err)
}

// Inspect returns who the file at path is and where it lies, clipped and merged.
func (s *System) Inspect(ctx context.Context, path string) (image.Identity, extents.Layout, error) {
	img, err := s.openImage(ctx, path)
	if err != nil {
		return image.Identity{}, extents.Layout{}, err
	}
	defer img.Close()
	id, err := img.Identity()
	if err != nil {
		return image.Identity{}, extents.Layout{}, fault.Wrap(path, "", err)
	}
	layout, err := extents.Read(img.File())
	return id, layout.Clip().Merge(), fault.Wrap(path, "", err)
}

// Restore makes a mapping from its record alone, without a look at the file, whose
// file system is not mounted yet. The caller has made sure that the record is the
// right one for the host device. The guard, or Repin and Verify, find out once the
// file can be read whether it still is what the record says.
func (s *System) Restore(ctx context.Context, m record.Record) (Status, error) {
	t, err := s.lock(ctx)
	if err != nil {
		return Status{}, err
	}
	defer t.end()
	conn, err := s.mapper()
	if err != nil {
		return Status{}, err
	}
	if err := nameFree(t.store, conn, m.Name, m.UUID); err != nil {
		return Status{}, err
	}
	readOnly, err := s.restorable(conn, m)
	if err != nil {
		return Status{}, err
	}
	m.ReadOnly = m.ReadOnly || readOnly
	m.State, m.Reason = guard.Mapping, ""
	if err := t.store.Save(m); err != nil {
		return Status{}, err
	}
	if err := conn.Make(m.Name, m.UUID, m.Table, m.ReadOnly, mapper.UdevFlags(m)); err != nil {
		return Status{}, fault.Wrap(m.Name, "", errors.Join(err, t.store.Delete(m.Name)))
	}
	info, err := conn.Info(dm.ByUUID(m.UUID))
	if err != nil {
		return Status{}, fault.Wrap(m.Name, "", err)
	}
	m.Device, m.State = info.Device, guard.Healthy
	if err := t.store.SaveHead(m); err != nil {
		return Status{}, err
	}
	return Status{Name: m.Name, UUID: m.UUID, Device: "/dev/mapper/" + m.Name, MajMin: info.Device.String(), Image: m.Image.Path,
		Size: m.Size, ReadOnly: m.ReadOnly, Extents: m.Extents, Grade: m.Grade, State: m.State}, nil
}

// restorable proves that every row lies on a base device of the host and under no other
// live device, and reports whether a base device is read-only.
func (s *System) restorable(conn *mapper.Mapper, m record.Record) (readOnly bool, err error) {
	stack, problem, err := blockdev.ReadStack(s.sysfs, conn, m.Base.Device)
	if err != nil {
		return false, fault.Wrap(m.Name, "", err)
	}
	if problem != nil {
		return false, fault.Refuse(m.Name, []extents.Problem{*problem})
	}
	sizes := map[dmtable.Device]dmtable.Sectors{}
	for _, b := range stack.Base {
		sizes[b.Device] = b.Size
	}
	segments, err := m.Table.Segments()
	if err != nil {
		return false, fault.Wrap(m.Name, "", err)
	}
	for _, seg := range segments {
		if size, known := sizes[seg.Device]; !known || seg.End() > size {
			return false, fault.Refuse(m.Name, []extents.Problem{{Rule: extents.OutOfRange,
				Message: fmt.Sprintf("sectors %d-%d of %s do not lie on the host's base device", seg.Start, seg.End()-1, seg.Device)}})
		}
	}
	problems, err := survey.Overlaps(conn, stack.Host, segments, m.Offset)
	if err == nil && len(problems) > 0 {
		err = fault.Refuse(m.Name, problems)
	}
	return stack.ReadOnly(), err
}

// Repin sets the pins that dmloop set for a mapping and that are not in force any more,
// such as the kernel's swap claim, which no boot survives. A claim that may move blocks is
// refused: the mapping is live.
func (s *System) Repin(ctx context.Context, name string) error {
	t, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer t.end()
	m, err := findRecord(t.store, name)
	if err != nil {
		return err
	}
	img, err := s.openToChange(ctx, t.asleep, m)
	if err != nil {
		return fault.Wrap(m.Name, "", err)
	}
	defer img.Close()
	if err := s.surveyor().NotLive(img, m.Image.Filesystem, m.UUID); err != nil { // setting pins anew may lift them for a moment
		return err
	}
	gated := s.gateAgain(m, true)
	if gated {
		defer s.gateAgain(m, false)
	}
	kinds := m.OurPins()
	if slices.Contains(kinds, pin.Swap) && fstype.Of(m.Image.Filesystem).SwapMoves {
		active, err := swap.Active(img.File())
		if err != nil {
			return fault.Wrap(m.Name, "", err)
		}
		if !active {
			return fault.Refuse(m.Name, []extents.Problem{{Rule: extents.Unpinnable,
				Message: m.Image.Filesystem + " may move the image when the kernel takes it as swap, which must not happen below a live mapping",
				Remedy:  advice.MapAgain}})
		}
	}
	set := func(kinds []pin.Kind) error {
		hold := s.claim(ctx, img)
		hold.Unsafe, hold.Gated = m.Unsafe, gated
		_, err := pin.Set(img.File(), m.Image.Filesystem, m.Name, kinds, hold)
		return pinningError(img.Path(), err)
	}
	if err = set(kinds); err != nil && slices.Contains(kinds, pin.Swap) {
		// What can be set without the claim is set: the mapping is live.
		err = errors.Join(err, set(pin.WithoutClaim(kinds)))
	}
	return fault.Wrap(m.Name, "", errors.Join(err, s.proveAgain(ctx, t.store, m, img)))
}

// proveAgain proves again that nobody else has the image of a live mapping open,
// unless the kernel holds the image, and records whether it succeeded: the one from before
// is void, since the immutable flag has been off.
func (s *System) proveAgain(ctx context.Context, store *record.Store, m record.Record, img *image.Image) error {
	inForce, err := pinsInForce(img, m, swap.Active)
	if err != nil {
		return err
	}
	had := m.Proof
	m.Proof = false
	if !slices.Contains(inForce, pin.Swap) {
		err = s.proveOnce(ctx, img, m.Image.Path)
		m.Proof = err == nil
	}
	if m.Proof != had {
		err = errors.Join(err, store.SaveHead(m))
	}
	return pinningError(m.Image.Path, err)
}

// ReleaseClaim ends the kernel's claim on a sealed image and leaves its other pins, for
// the moment before the host file system is unmounted while the mapping stays: the
// machine goes down with its root file system on it. Without inUse a mapping that
// somebody has open keeps the claim, where the other pins would let its blocks move.
func (s *System) ReleaseClaim(ctx context.Context, name string, inUse bool) error {
	t, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer t.end()
	m, err := findRecord(t.store, name)
	if err != nil || !m.Sealed {
		return err
	}
	img, err := s.openToChange(ctx, t.asleep, m)
	if err != nil {
		return fault.Wrap(m.Name, "", err)
	}
	defer img.Close()
	if err := s.surveyor().NotLive(img, m.Image.Filesystem, m.UUID); err != nil {
		return err
	}
	left := evidence(m, pin.WithoutClaim(m.OurPins()))
	left.Proof = true // it is taken below
	if !inUse && pin.GradeOf(left) != pin.Kernel {
		conn, err := s.mapper()
		if err != nil {
			return fault.Wrap(m.Name, "", err)
		}
		info, err := conn.Info(dm.ByUUID(m.UUID))
		if err == nil && info.OpenCount > 0 {
			s.log.Warn("somebody has the device open: the kernel keeps the image, and its host file system cannot be unmounted", "mapping", m.Name)
			return nil
		}
		if err != nil && !errors.Is(err, dm.ErrNotFound) {
			return fault.Wrap(m.Name, "", err)
		}
	}
	if s.gateAgain(m, true) { // the immutable flag is off meanwhile
		defer s.gateAgain(m, false)
	}
	if err := pin.EndClaim(img.File(), m.Image.Filesystem, m.Name, s.claim(ctx, img)); err != nil {
		return fault.Wrap(m.Name, "", pinningError(m.Image.Path, err))
	}
	if err := s.proveAgain(ctx, t.store, m, img); err != nil {
		s.log.Warn("the kernel released the image, and somebody else has it open", "mapping", m.Name, "error", err)
	}
	return nil
}
