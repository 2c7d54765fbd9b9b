package lifecycle

import (
	"context"
	"errors"
	"fmt"

	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/dm"
	"dmloop/internal/image"
	"dmloop/internal/manifest"
	"dmloop/internal/pin"
)

// Verified is what a check of one mapping found.
type Verified struct {
	Name     string
	State    manifest.State
	Reason   string
	Findings []guard.Finding
}

// Verify reads everything about the mappings again, those named or all, and
// compares it with what was recorded. It changes nothing.
func (s *System) Verify(ctx context.Context, targets ...string) ([]Verified, error) {
	store, err := s.openStore(false)
	if err != nil {
		return nil, err
	}
	if store == nil {
		if len(targets) > 0 {
			return nil, &Error{Class: NotFound, Subject: targets[0], Message: "no such mapping", Hint: "see: dmloop list"}
		}
		return nil, nil
	}
	defer store.Close()
	records, err := s.records(store, targets)
	if err != nil {
		return nil, err
	}
	var all []Verified
	for _, m := range records {
		v := Verified{Name: m.Name, State: m.State, Reason: m.Reason}
		if m.State != manifest.Releasing && m.State != manifest.Mapping {
			v.Findings = guard.Check(Expect(m), s.Observe(ctx, m))
			if !m.State.Broken() {
				v.State, v.Reason = judged(v.Findings)
			}
		}
		all = append(all, v)
	}
	return all, nil
}

// judged is what findings say of a mapping that nobody tears down for it. What
// cannot be read is not known to be as it was.
func judged(findings []guard.Finding) (manifest.State, string) {
	d := guard.Decide(findings, guard.OnChangeReport)
	for _, f := range findings {
		if f.Kind == guard.Unreadable && d.State == guard.Healthy {
			return manifest.Stale, f.Message
		}
	}
	return manifest.State(d.State), d.Reason
}

// Expect turns a record into what a check expects to find.
func Expect(m manifest.Manifest) guard.Expected {
	return guard.Expected{
		Name: m.Name,
		Identity: guard.Identity{Device: m.Image.Device(), Inode: m.Image.Inode,
			Generation: m.Image.Generation, Size: m.Image.Size},
		Layout:  m.Layout,
		Pins:    guard.Pins{InForce: m.PinKinds(), Grade: m.Grade},
		Exposed: m.Grade == string(pin.Guarded),
		Base:    guard.Base{Device: m.Base.Device, UUID: m.Base.UUID, Table: m.Base.Table},
		Table:   m.Table,
		Policy:  guard.Policy(m.OnChange),
	}
}

// Observe reads everything that a check compares, once, in full.
func (s *System) Observe(ctx context.Context, m manifest.Manifest) guard.Observed {
	var o guard.Observed
	img, err := s.openRecorded(ctx, m.Image)
	if err != nil {
		o.Identity = guard.Read(guard.Identity{}, err)
	} else {
		defer img.Close()
		o.Identity = guard.Read(observeIdentity(img))
		o.Layout = guard.Read(observeLayout(img))
		o.Pins = guard.Read(s.observePins(img, m))
	}
	conn, err := s.mapper()
	if err != nil {
		o.Own = guard.Read(guard.OwnState{}, err)
		return o
	}
	o.Base = guard.Read(observeBase(conn, m))
	own, table, err := conn.State(dm.ByUUID(m.UUID))
	switch {
	case errors.Is(err, dm.ErrNotFound):
		o.Own = guard.Read(guard.OwnState{Gone: true}, nil)
	case err != nil:
		o.Own = guard.Read(guard.OwnState{}, err)
	default:
		o.Own = guard.Read(guard.OwnState{Suspended: own.Suspended, Waiting: own.InactiveTable}, nil)
		o.OwnTable = guard.Read(table, nil)
	}
	return o
}

func observeIdentity(img *image.Image) (guard.Identity, error) {
	id, err := img.Identity()
	if err != nil {
		return guard.Identity{}, err
	}
	facts, err := img.Facts()
	return guard.Identity{Device: facts.Device, Inode: id.Inode, Generation: id.Generation,
		Size: id.Size, Links: uint64(facts.Links)}, err
}

// observeLayout reads the layout as it is recorded: clipped and merged, with the
// problems that it has as an error.
func observeLayout(img *image.Image) (extents.Layout, error) {
	l, err := extents.Read(img.File())
	return l.Clip().Merge(), err
}

func (s *System) observePins(img *image.Image, m manifest.Manifest) (guard.Pins, error) {
	kinds, err := s.pinsInForce(img, m)
	p := guard.Pins{Grade: string(pin.GradeOf(evidence(m, kinds)))}
	for _, k := range kinds {
		p.InForce = append(p.InForce, string(k))
	}
	return p, err
}

func observeBase(conn *dm.Conn, m manifest.Manifest) (guard.Base, error) {
	info, table, err := conn.State(dm.ByDevice(m.Base.Device))
	if err != nil {
		return guard.Base{}, fmt.Errorf("the host device %s: %w", m.Base.Device, err)
	}
	return guard.Base{Device: info.Device, UUID: info.UUID, Table: table.String(),
		Suspended: info.Suspended, Waiting: info.InactiveTable}, nil
}
