package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/gate"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/observe"
	"dmloop/internal/pin"
	"dmloop/internal/record"
	"dmloop/internal/swap"
)

// Status is one mapping as `list` shows it: the record, checked against what the
// kernel says now.
type Status struct {
	Name     string
	UUID     string
	Device   string // /dev/mapper/NAME; empty when the device does not exist
	MajMin   string // empty when the device does not exist
	Image    string
	Size     extents.Bytes
	ReadOnly bool
	Extents  int
	Pins     []pin.Kind // in force now
	Grade    pin.Grade
	State    guard.State
	Reason   string
	Guard    bool // the guard watches it now
	Open     int
	Gate     guard.Gate // what denies opens by others; empty when the mapping has no record
	GateWhy  error      // why it is not the gate in the kernel, if it is not
	stopped  bool       // the guard found it different and suspended it
}

// Broken reports whether the mapping was found different from what was mapped. One that
// somebody has merely suspended is not.
func (s Status) Broken() bool { return s.State.Broken() || s.stopped }

// List returns the status of the mappings named by name or image path, or of all.
// It changes nothing.
func (s *System) List(ctx context.Context, targets ...string) ([]Status, error) {
	store, err := s.openStore(false)
	if err != nil {
		return nil, err
	}
	var records []record.Record
	unknown := targets // those that no record names
	if store != nil {
		defer store.Close()
		if records, unknown, err = s.wanted(store, targets, store.Head); err != nil {
			return nil, err
		}
	}
	conn, err := s.mapper()
	if err != nil {
		if class := fault.ClassOf(err); len(records) > 0 || class != fault.KernelLacks && class != fault.NotPermitted {
			return nil, err
		}
		return pick(store, nil, unknown) // a kernel without device-mapper has no mappings
	}
	found := make([]Status, 0, len(records))
	watched := s.guard.watched(ctx)
	for _, m := range records {
		st, there := s.settled(ctx, store, conn, m, watched)
		switch {
		case there:
			found = append(found, st)
		case len(targets) > 0:
			return nil, noSuchMapping(m.Name)
		}
	}
	if len(targets) > 0 && len(unknown) == 0 {
		return found, nil
	}
	orphans, err := s.orphans(store, conn)
	if err == nil {
		orphans, err = pick(store, orphans, unknown)
	}
	if err != nil {
		return nil, err
	}
	return append(found, orphans...), nil
}

// wanted reads the records of targets, or all with load, Store's Load or Head, and
// returns the targets that have none.
func (s *System) wanted(store *record.Store, targets []string, load func(name string) (record.Record, error)) (records []record.Record, unknown []string, err error) {
	if len(targets) == 0 {
		records, err = allRecords(store, load)
		return records, nil, err
	}
	for _, t := range targets {
		m, err := findRecord(store, t)
		switch {
		case err == nil:
			records = append(records, m)
		case fault.ClassOf(err) == fault.NotFound:
			unknown = append(unknown, t)
		default:
			return nil, nil, err
		}
	}
	return records, unknown, nil
}

// pick returns those of names, each of which has to be there, or all.
func pick(store *record.Store, all []Status, names []string) ([]Status, error) {
	if len(names) == 0 {
		return all, nil
	}
	var picked []Status
	for _, n := range names {
		i := slices.IndexFunc(all, func(st Status) bool { return slices.Contains(namesOf(n), st.Name) })
		if i < 0 {
			return nil, noSuchMappingIn(store, n)
		}
		picked = append(picked, all[i])
	}
	return picked, nil
}

// settled is the status of a mapping while no other command changes it: an unmap says
// so in the record before it undoes anything, so what is seen beside a record that
// stays the same is the mapping's own state. It reports whether the mapping is still
// there.
func (s *System) settled(ctx context.Context, store *record.Store, conn *mapper.Mapper, m record.Record, watched map[string]bool) (st Status, there bool) {
	for range settleTries {
		if unreadable(m) {
			return Status{Name: m.Name, Grade: pin.Unsafe, State: m.State, Reason: m.Reason}, true
		}
		st = s.status(ctx, conn, m)
		st.Guard = watched[m.Name]
		now, err := store.Head(m.Name)
		switch {
		case errors.Is(err, record.ErrNotFound):
			return Status{}, false
		case err != nil, now.UUID == m.UUID && now.State == m.State && now.Reason == m.Reason && now.Grade == m.Grade:
			return st, true
		}
		m, watched = now, s.guard.watched(ctx)
	}
	return st, true
}

// settleTries bounds how often a mapping that others keep changing is looked at.
const settleTries = 10

// allRecords reads all records with load. One that cannot be used is there as a stale
// mapping that is unreadable.
func allRecords(store *record.Store, load func(name string) (record.Record, error)) ([]record.Record, error) {
	names, err := store.Names()
	if err != nil {
		return nil, err
	}
	var records []record.Record
	for _, name := range names {
		m, err := load(name)
		if errors.Is(err, record.ErrNotFound) {
			continue // unmapped meanwhile
		}
		if err != nil { // it must not hide the others
			m = record.Record{Name: name, State: guard.Stale, Reason: "its record cannot be used: " + err.Error()}
		}
		records = append(records, m)
	}
	return records, nil
}

// unreadable reports whether a record only stands for one that cannot be read.
func unreadable(m record.Record) bool { return m.UUID == "" }

// status compares a record with the kernel. Whether the guard watches is left to the
// caller.
func (s *System) status(ctx context.Context, conn *mapper.Mapper, m record.Record) Status {
	st := Status{
		Name: m.Name, UUID: m.UUID, Image: m.Image.Path, Size: m.Size, ReadOnly: m.ReadOnly,
		Extents: m.Extents, State: m.State, Reason: m.Reason, stopped: m.State == guard.Suspended,
	}
	st.Gate, st.GateWhy = s.gateOf(m)
	info, err := conn.Info(dm.ByUUID(m.UUID))
	switch {
	case err == nil:
		st.Device, st.MajMin, st.Open = "/dev/mapper/"+info.Name, info.Device.String(), info.OpenCount
		if info.Suspended && st.State == guard.Healthy {
			st.State, st.Reason = guard.Suspended, "somebody suspended the device"
		}
	case errors.Is(err, dm.ErrNotFound) && (m.State == guard.Mapping || m.State == guard.Releasing):
	case errors.Is(err, dm.ErrNotFound):
		st.State = guard.Failed
		if st.Reason == "" {
			st.Reason = "somebody removed the device; dmloop unmap " + m.Name + " releases the image"
		}
	default:
		st.State, st.Reason = guard.Stale, err.Error()
	}
	s.judgeBelow(conn, &st, m)
	s.judgePins(ctx, &st, m)
	return st
}

// judgeBelow says what is known of the devices that the live table names, of a mapping
// that nothing is known against so far.
func (s *System) judgeBelow(conn *mapper.Mapper, st *Status, m record.Record) {
	if st.Device == "" || st.State != guard.Healthy && st.State != guard.Weakened {
		return
	}
	devices, err := conn.Deps(dm.ByUUID(m.UUID))
	if err != nil {
		s.log.Debug("the devices below are not known", "mapping", m.Name, "error", err)
		return
	}
	found := map[dmtable.Device]guard.Below{}
	for _, device := range devices {
		if found[device], err = observe.Below(s.sysfs, conn, m, device); err != nil {
			s.log.Debug("nothing is known of a device below", "mapping", m.Name, "device", device, "error", err)
			delete(found, device)
		}
	}
	for _, f := range guard.Check(guard.Expected{ReadOnly: m.ReadOnly}, guard.Observed{Below: guard.Read(found, nil)}) {
		switch f.Kind {
		case guard.BelowLost:
			st.State, st.Reason = guard.Failed, f.String()
			return
		case guard.BelowAiling:
			st.State, st.Reason = guard.Stale, f.String()
		case guard.BelowFixed:
			st.ReadOnly = true
			st.Reason = cmp.Or(st.Reason, f.String())
		}
	}
}

// judgePins fills in what pins the image now, and what that is worth.
func (s *System) judgePins(ctx context.Context, st *Status, m record.Record) {
	img, err := s.openRecorded(ctx, m.Image)
	if err == nil {
		defer img.Close()
		st.Image = observe.PathNow(img, m.Image) // a folder may have been renamed since
		var kinds []pin.Kind
		if kinds, err = pinsInForce(img, m, listedClaim); err == nil {
			st.Pins, st.Grade = kinds, pin.GradeOf(evidence(m, kinds))
			s.judgeLoss(st, m, kinds, st.Grade)
			judgeArea(st, img, kinds)
			if now, serr := img.Status(); serr == nil && now.Links == 0 {
				st.deleted()
			}
			return
		}
	}
	st.Grade = pin.Unsafe // nothing is known to be in force
	if errors.Is(err, observe.ErrImageGone) || errors.Is(err, observe.ErrSeemsGone) {
		st.deleted()
		return
	}
	if st.Reason == "" {
		st.Reason = "the pins cannot be read: " + err.Error()
	}
}

// judgeArea says when the kernel uses more of a sealed image than the page that is meant.
func judgeArea(st *Status, img *image.Image, now []pin.Kind) {
	if !slices.Contains(now, pin.Swap) || st.State.Broken() {
		return
	}
	area, err := swap.Area(img.File())
	if page := int64(os.Getpagesize()); err == nil && area.Size != page {
		st.State = guard.Stale
		st.Reason = fmt.Sprintf("the kernel uses %d bytes of the image as swap space instead of one page of %d", area.Size, page)
	}
}

// deleted is what is said of a mapping whose image has no name any more: without a guard
// nobody else says it.
func (s *Status) deleted() {
	if s.State == guard.Healthy || s.State == guard.Weakened {
		s.State, s.Reason = guard.Stale, "the image was deleted: the file system takes its blocks back as soon as nobody has it open"
	}
}

// judgeLoss says what a lost pin means for a mapping that was healthy.
func (s *System) judgeLoss(st *Status, m record.Record, now []pin.Kind, grade pin.Grade) {
	if st.State != guard.Healthy && st.State != guard.Weakened {
		return
	}
	var lost []pin.Kind
	for _, p := range m.Pins {
		if !slices.Contains(now, p.Kind) {
			lost = append(lost, p.Kind)
		}
	}
	switch {
	case len(lost) == 0:
	case len(lost) == 1 && lost[0] == pin.BPF && grade != pin.Unsafe:
		st.State, st.Reason = guard.Weakened, fmt.Sprintf("the gate in the kernel is gone; grade %s became %s", m.Grade, grade)
	case grade == m.Grade:
		st.State, st.Reason = guard.Weakened, "pin lost: "+strings.Join(guard.PinNames(lost), ", ")
	default:
		st.State = guard.Stale
		st.Reason = fmt.Sprintf("pin lost: %s; grade %s became %s", strings.Join(guard.PinNames(lost), ", "), m.Grade, grade)
	}
}

// orphans lists live devices of dmloop that no record names. A map saves its record
// before it makes the device, so the records are read after the devices. store may be
// nil.
func (s *System) orphans(store *record.Store, conn *mapper.Mapper) ([]Status, error) {
	devices, err := conn.Mappings()
	if err != nil {
		return nil, err
	}
	known, unusable := map[string]bool{}, map[string]bool{}
	if store != nil {
		records, err := allRecords(store, store.Head)
		if err != nil {
			return nil, err
		}
		for _, m := range records {
			known[m.UUID] = true
			if unreadable(m) {
				unusable[m.Name] = true
			}
		}
	}
	var found []Status
	for _, d := range devices {
		if known[d.UUID] || unusable[d.Name] {
			continue
		}
		info, table, err := conn.State(dm.ByUUID(d.UUID))
		if errors.Is(err, dm.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = append(found, Status{
			Name: info.Name, UUID: info.UUID, Device: "/dev/mapper/" + info.Name, MajMin: info.Device.String(),
			Size:     extents.Bytes(table.Size()) * dmtable.SectorSize,
			ReadOnly: info.ReadOnly, Open: info.OpenCount, Grade: pin.Unsafe, State: guard.Stale,
			Reason: "no record names this device: remove it with dmloop unmap " + info.Name + " and map its image again",
		})
	}
	return found, nil
}

// listedClaim looks for a swap claim in the kernel's list, which is enough to show:
// its proof makes a file on the host for a moment.
func listedClaim(f *os.File) (bool, error) {
	_, active, err := swap.Lookup(f)
	return active, err
}

// pinsInForce lists what pins the image now, the kernel's swap claim included, for
// which it asks claimed: swap.Active or listedClaim.
func pinsInForce(img *image.Image, m record.Record, claimed func(*os.File) (bool, error)) ([]pin.Kind, error) {
	kinds, err := pin.InForce(img.File(), m.Image.Filesystem)
	if err == nil && m.Sealed {
		var active bool
		if active, err = claimed(img.File()); active {
			kinds = append(kinds, pin.Swap)
		}
	}
	if err != nil || m.Gate != guard.GateBPF {
		return kinds, err
	}
	gated, err := gate.InForce(m.Image.FileID, m.Device)
	if gated {
		kinds = append(kinds, pin.BPF)
	}
	return kinds, err
}

// evidence is what a grade is computed from.
func evidence(m record.Record, inForce []pin.Kind) pin.Evidence {
	return pin.Evidence{Filesystem: m.Image.Filesystem, Reflink: m.Image.Reflink, InForce: inForce, Proof: m.Proof}
}
