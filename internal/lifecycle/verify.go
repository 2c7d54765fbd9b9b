package lifecycle

import (
	"context"

	"dmloop/guard"
	"dmloop/internal/manifest"
	"dmloop/internal/observe"
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
	records, err := s.records(store, targets, store.Load)
	if err != nil {
		return nil, err
	}
	var all []Verified
	for _, m := range records {
		v := Verified{Name: m.Name, State: m.State, Reason: m.Reason}
		if m.State != manifest.Releasing && m.State != manifest.Mapping && !unreadable(m) {
			v.Findings = guard.Check(observe.Expect(m), s.observeAll(ctx, m))
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

// observeAll reads everything that a check compares, once, in full.
func (s *System) observeAll(ctx context.Context, m manifest.Manifest) guard.Observed {
	img, err := s.openRecorded(ctx, m.Image)
	if err != nil {
		return guard.Observed{Identity: guard.Read(guard.Identity{}, err)}
	}
	defer img.Close()
	conn, err := s.mapper()
	if err != nil {
		return guard.Observed{Own: guard.Read(guard.OwnState{}, err)}
	}
	r := &observe.Reader{Mapper: conn, Image: img, Record: m}
	defer r.Close()
	return r.Full(ctx, r.Quick(ctx, true))
}
