package lifecycle

import (
	"context"
	"errors"

	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/fault"
	"dmloop/internal/observe"
	"dmloop/internal/record"
)

// Verified is what a check of one mapping found.
type Verified struct {
	Name     string
	State    guard.State
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
			return nil, noSuchMapping(targets[0])
		}
		return nil, nil
	}
	defer store.Close()
	records, unknown, err := s.wanted(store, targets, store.Load)
	if err != nil {
		return nil, err
	}
	if len(unknown) > 0 {
		return nil, noSuchMappingIn(store, unknown[0])
	}
	var all []Verified
	for _, m := range records {
		var err error
		v := s.verify(ctx, m)
		if v.State.Broken() && !m.State.Broken() {
			v, err = s.verifyAlone(ctx, store, v)
		}
		switch {
		case err == nil:
			all = append(all, v)
		case errors.Is(err, record.ErrNotFound) && len(targets) == 0: // unmapped meanwhile
		case errors.Is(err, record.ErrNotFound):
			return nil, &fault.Error{Class: fault.NotFound, Subject: m.Name, Message: "it was unmapped meanwhile", Remedy: advice.SeeList}
		default:
			return nil, err
		}
	}
	return all, nil
}

// verify compares one mapping with its record.
func (s *System) verify(ctx context.Context, m record.Record) Verified {
	v := Verified{Name: m.Name, State: m.State, Reason: m.Reason}
	if m.State != guard.Releasing && m.State != guard.Mapping && !unreadable(m) {
		v.Findings = guard.Check(observe.Expect(m), s.observeAll(ctx, m))
		if !m.State.Broken() {
			v.State, v.Reason = judged(v.Findings)
		}
	}
	return v
}

// verifyAlone compares once more while no other command can be changing the mapping:
// what an unmap has half undone differs from its record too. A lock that cannot be taken
// leaves the first answer as it is, for it may be the truth.
func (s *System) verifyAlone(ctx context.Context, store *record.Store, first Verified) (Verified, error) {
	wait, cancel := context.WithTimeout(ctx, s.patience.lock)
	defer cancel()
	unlock, err := store.Lock(wait)
	if err != nil {
		return first, ctx.Err()
	}
	defer unlock()
	m, err := store.Load(first.Name)
	if err != nil {
		return first, err
	}
	return s.verify(ctx, m), nil
}

// judged is what findings say of a mapping that nobody tears down for it. What
// cannot be read is not known to be as it was.
func judged(findings []guard.Finding) (guard.State, string) {
	d := guard.Decide(findings, guard.OnChangeReport)
	for _, f := range findings {
		if (f.Kind == guard.Unreadable || f.Kind == guard.BelowAiling) && d.State == guard.Healthy {
			return guard.Stale, f.Message
		}
	}
	return d.State, d.Reason
}

// growing returns the size that a command gives the image of a mapping now, as its record
// says by now, and 0 without one.
func (s *System) growing(m record.Record) extents.Bytes {
	store, err := s.openStore(false)
	if err != nil || store == nil {
		return 0
	}
	defer store.Close()
	now, err := store.Head(m.Name)
	if err != nil || now.UUID != m.UUID || now.Growing == nil {
		return 0
	}
	return now.Growing.To
}

// observeAll reads everything that a check compares, once, in full.
func (s *System) observeAll(ctx context.Context, m record.Record) guard.Observed {
	img, err := s.openRecorded(ctx, m.Image)
	if err != nil {
		return guard.Observed{Identity: guard.Read(guard.Identity{}, err)}
	}
	defer img.Close()
	conn, err := s.mapper()
	if err != nil {
		return guard.Observed{Own: guard.Read(guard.OwnState{}, err)}
	}
	r := &observe.Reader{Mapper: conn, Image: img, Record: m, Sysfs: s.sysfs, Growing: func() extents.Bytes { return s.growing(m) }}
	defer r.Close()
	return r.Full(ctx, r.Quick(ctx, true))
}
