package guardd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/internal/guardrpc"
	"dmloop/internal/image"
	"dmloop/internal/record"
	"dmloop/internal/watch"
)

// session is what a client's connection holds.
type session struct {
	images []prepared
	revoke func() // takes back the leave to open marked images
}

type prepared struct {
	file   *os.File
	id     guard.FileID
	marked bool
}

var _ guardrpc.Handler = (*Daemon)(nil)

// Connected implements guardrpc.Handler. Whoever may talk to the guard may open what
// it watches: Open would hand it out anyway.
func (d *Daemon) Connected(s *guardrpc.Session) {
	own := &session{revoke: func() {}}
	if d.gate != nil {
		own.revoke = d.gate.Allow(s.PID)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sessions[s] = own
}

// Begin implements guardrpc.Handler. A guard that has made up its mind to end takes on
// nothing: it would not watch it.
func (d *Daemon) Begin() (end func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ending {
		return nil, guardrpc.ErrEnding
	}
	d.requests++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.requests--
		d.busy = time.Now()
	}, nil
}

// Prepare implements guardrpc.Handler.
func (d *Daemon) Prepare(_ context.Context, s *guardrpc.Session, f *os.File, deny bool) (guardrpc.Prepared, error) {
	id, err := watch.IDOf(f)
	if err != nil {
		f.Close()
		return guardrpc.Prepared{}, err
	}
	p := prepared{file: f, id: id, marked: deny && d.mark(id, f)}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sessions[s].images = append(d.sessions[s].images, p)
	switch {
	case p.marked:
		return guardrpc.Prepared{Denies: guardrpc.Yes}, nil
	case !deny:
		return guardrpc.Prepared{Denies: guardrpc.No, Why: "nobody asked for it"}, nil
	}
	denies, why := d.denies, d.gateWhy
	if denies == guardrpc.Yes {
		denies, why = guardrpc.Unknown, "the image could not be marked"
	}
	return guardrpc.Prepared{Denies: denies, Why: why}, nil
}

// Closed implements guardrpc.Handler.
func (d *Daemon) Closed(s *guardrpc.Session) {
	d.mu.Lock()
	own := d.sessions[s]
	delete(d.sessions, s)
	d.busy = time.Now()
	d.mu.Unlock()
	for _, p := range own.images {
		if p.marked {
			d.unmark(p.id, p.file)
		}
		p.file.Close()
	}
	own.revoke()
}

// Add implements guardrpc.Handler.
func (d *Daemon) Add(ctx context.Context, s *guardrpc.Session, name string) (state guardrpc.MappingState, err error) {
	d.locks.with(name, func() { state, err = d.add(ctx, s, name) })
	return state, err
}

func (d *Daemon) add(ctx context.Context, s *guardrpc.Session, name string) (guardrpc.MappingState, error) {
	m, err := d.store.Load(name)
	if errors.Is(err, record.ErrNotFound) {
		return guardrpc.MappingState{}, guardrpc.Errorf(guardrpc.KindNotFound, "%v", err)
	}
	if err != nil {
		return guardrpc.MappingState{}, err
	}
	img := d.preparedImage(s, m)
	d.forget(name)
	mp, err := d.begin(ctx, m, img)
	if err != nil {
		d.forget(name)
		return guardrpc.MappingState{}, err
	}
	d.Log.Info("watching", "mapping", name, "image", m.Image.Path, "grade", mp.watch.Last().Grade, "extents", m.Extents, "denies", mp.marked)
	d.mu.Lock()
	defer d.mu.Unlock()
	return mp.state(), nil
}

// preparedImage returns a duplicate of the descriptor that the client prepared m's
// image with, or nil when there is none of use.
func (d *Daemon) preparedImage(s *guardrpc.Session, m record.Record) *image.Image {
	d.mu.Lock()
	defer d.mu.Unlock()
	own := d.sessions[s]
	if own == nil { // the guard's own wish
		return nil
	}
	for _, p := range own.images {
		if img, err := duplicate(p.file, m); err == nil {
			return img
		}
	}
	return nil
}

// Drop implements guardrpc.Handler.
func (d *Daemon) Drop(_ context.Context, name string) error {
	d.locks.with(name, func() {
		if d.forget(name) {
			d.Log.Info("no longer watched", "mapping", name)
		}
	})
	return nil
}

// Open implements guardrpc.Handler. A client of an earlier version names no inode: then
// the path is looked up, and where nothing is any more, the mapping that was made there
// is meant.
func (d *Daemon) Open(_ context.Context, want record.Image) (*os.File, error) {
	id := guard.FileID{Major: want.Major, Minor: want.Minor, Inode: want.Inode}
	gone := false
	if want.Inode == 0 {
		var st unix.Stat_t
		gone = unix.Stat(want.Path, &st) != nil
		dev := dmtable.DeviceOf(st.Dev)
		id = guard.FileID{Major: dev.Major, Minor: dev.Minor, Inode: st.Ino}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.mappings {
		if m.image != nil && (m.id == id || gone && m.record.Image.Path == want.Path) {
			return again(m.image.File(), want.Path)
		}
	}
	for _, s := range d.sessions {
		for _, p := range s.images {
			if p.id == id {
				return again(p.file, want.Path)
			}
		}
	}
	return nil, guardrpc.Errorf(guardrpc.KindNotFound, "%s is not watched", want.Path)
}

// Grow implements guardrpc.Handler.
func (d *Daemon) Grow(_ context.Context, name string) error {
	d.mu.Lock()
	m := d.mappings[name]
	d.mu.Unlock()
	switch {
	case m == nil:
		return guardrpc.Errorf(guardrpc.KindNotFound, "%s is not watched", name)
	case m.growing() == 0:
		return guardrpc.Errorf(guardrpc.KindFailed, "the record of %s does not say that it is made longer", name)
	}
	return nil
}

// Record implements guardrpc.Handler.
func (d *Daemon) Record(_ context.Context, name string) (record.Record, error) {
	m, watched := d.remembered(name)
	if !watched {
		return m, guardrpc.Errorf(guardrpc.KindNotFound, "%s is not watched", name)
	}
	return m, nil
}

// Status implements guardrpc.Handler.
func (d *Daemon) Status(context.Context) (guardrpc.Status, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := guardrpc.Status{
		PID: os.Getpid(), Started: d.started, Denies: d.denies, Why: d.gateWhy,
		Mappings: make([]guardrpc.MappingState, 0, len(d.mappings)),
	}
	for _, m := range d.mappings {
		st.Mappings = append(st.Mappings, m.state())
	}
	sort.Slice(st.Mappings, func(i, j int) bool { return st.Mappings[i].Name < st.Mappings[j].Name })
	return st, nil
}

// Check implements guardrpc.Handler.
func (d *Daemon) Check(ctx context.Context, name string) (guardrpc.MappingState, error) {
	d.mu.Lock()
	m := d.mappings[name]
	d.mu.Unlock()
	if m == nil {
		return guardrpc.MappingState{}, guardrpc.Errorf(guardrpc.KindNotFound, "%s is not watched", name)
	}
	ctx, cancel := context.WithTimeout(ctx, guard.StuckAfter)
	defer cancel()
	if _, err := m.watch.Check(ctx); err != nil {
		return guardrpc.MappingState{}, fmt.Errorf("%s: no check was completed: %w", name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return m.state(), nil
}

// state is what the guard knows of the mapping. The caller holds Daemon.mu.
func (m *mapping) state() guardrpc.MappingState {
	r := m.watch.Last()
	st := guardrpc.MappingState{
		Name: m.record.Name, Image: m.record.Image.Path, State: r.Decision.State, Reason: r.Decision.Reason,
		Grade: r.Grade, Denies: m.d.denies, Findings: r.Findings, Checks: r.Checks, FullChecks: r.Fulls,
		LastCheck: r.Time, LastFull: r.LastFull, FullInterval: r.Interval, FullCost: r.Cost, Denied: m.d.deniedOf(m),
	}
	if !m.marked && st.Denies == guardrpc.Yes {
		st.Denies = guardrpc.No
	}
	return st
}
