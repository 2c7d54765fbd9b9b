package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"dmloop/extents"
	"dmloop/internal/dm"
	"dmloop/internal/image"
	"dmloop/internal/manifest"
	"dmloop/internal/pin"
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
	Pins     []string // in force now
	Grade    string
	State    manifest.State
	Reason   string
	Guard    bool // the guard watches it now
	Open     int
}

// List returns the status of the mappings named by name or image path, or of all.
// It changes nothing.
func (s *System) List(ctx context.Context, targets ...string) ([]Status, error) {
	store, err := s.openStore(false)
	if err != nil {
		return nil, err
	}
	var records []manifest.Manifest
	if store != nil {
		defer store.Close()
		if records, err = s.records(store, targets, store.Head); err != nil {
			return nil, err
		}
	} else if len(targets) > 0 {
		return nil, &Error{Class: NotFound, Subject: targets[0], Message: "no such mapping", Hint: "see: dmloop list"}
	}
	conn, err := s.mapper()
	if err != nil {
		if len(records) == 0 {
			return nil, nil // a kernel without device-mapper has no mappings
		}
		return nil, err
	}
	found := make([]Status, 0, len(records))
	for _, m := range records {
		if unreadable(m) {
			found = append(found, Status{Name: m.Name, Grade: string(pin.Unsafe), State: m.State, Reason: m.Reason})
			continue
		}
		found = append(found, s.status(ctx, conn, m))
	}
	if len(targets) == 0 {
		orphans, err := s.orphans(conn, records)
		if err != nil {
			return nil, err
		}
		found = append(found, orphans...)
	}
	return found, nil
}

// records reads the records of targets with load, Store's Load or Head, or all.
func (s *System) records(store *manifest.Store, targets []string, load func(name string) (manifest.Manifest, error)) ([]manifest.Manifest, error) {
	var records []manifest.Manifest
	if len(targets) > 0 {
		for _, t := range targets {
			m, err := s.find(store, t)
			if err != nil {
				return nil, err
			}
			records = append(records, m)
		}
		return records, nil
	}
	names, err := store.Names()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		m, err := load(name)
		if errors.Is(err, manifest.ErrNotFound) {
			continue // unmapped meanwhile
		}
		if err != nil { // it must not hide the others
			m = manifest.Manifest{Name: name, State: manifest.Stale, Reason: "its record cannot be used: " + err.Error()}
		}
		records = append(records, m)
	}
	return records, nil
}

// unreadable reports whether a record only stands for one that cannot be read.
func unreadable(m manifest.Manifest) bool { return m.UUID == "" }

// status compares a record with the kernel.
func (s *System) status(ctx context.Context, conn *dm.Conn, m manifest.Manifest) Status {
	st := Status{
		Name: m.Name, UUID: m.UUID, Image: m.Image.Path, Size: m.Size, ReadOnly: m.ReadOnly,
		Extents: m.Extents, State: m.State, Reason: m.Reason,
	}
	info, err := conn.Info(dm.ByUUID(m.UUID))
	switch {
	case err == nil:
		st.Device, st.MajMin, st.Open = "/dev/mapper/"+info.Name, info.Device.String(), info.OpenCount
		if info.Suspended && st.State == manifest.Healthy {
			st.State, st.Reason = manifest.Suspended, "somebody suspended the device"
		}
	case errors.Is(err, dm.ErrNotFound) && m.State != manifest.Mapping:
		st.State = manifest.Releasing
		if st.Reason == "" {
			st.Reason = "the device is gone; dmloop unmap " + m.Name + " releases the image"
		}
	case !errors.Is(err, dm.ErrNotFound):
		st.State, st.Reason = manifest.Stale, err.Error()
	}
	s.judgePins(ctx, &st, m)
	st.Guard = s.watched(ctx)[m.Name]
	return st
}

// judgePins fills in what pins the image now, and what that is worth.
func (s *System) judgePins(ctx context.Context, st *Status, m manifest.Manifest) {
	img, err := s.openRecorded(ctx, m.Image)
	if err == nil {
		defer img.Close()
		var kinds []pin.Kind
		if kinds, err = pinsInForce(img, m, listedClaim); err == nil {
			for _, k := range kinds {
				st.Pins = append(st.Pins, string(k))
			}
			grade := pin.GradeOf(evidence(m, kinds))
			st.Grade = string(grade)
			s.judgeLoss(st, m, kinds, grade)
			return
		}
	}
	st.Grade = string(pin.Unsafe) // nothing is known to be in force
	if st.Reason == "" {
		st.Reason = "the pins cannot be read: " + err.Error()
	}
}

// judgeLoss says what a lost pin means for a mapping that was healthy.
func (s *System) judgeLoss(st *Status, m manifest.Manifest, now []pin.Kind, grade pin.Grade) {
	if st.State != manifest.Healthy && st.State != manifest.Weakened {
		return
	}
	var lost []string
	for _, p := range m.Pins {
		if !hasKind(now, pin.Kind(p.Kind)) {
			lost = append(lost, p.Kind)
		}
	}
	switch {
	case len(lost) == 0:
	case string(grade) == m.Grade:
		st.State, st.Reason = manifest.Weakened, "pin lost: "+strings.Join(lost, ", ")
	default:
		st.State = manifest.Stale
		st.Reason = fmt.Sprintf("pin lost: %s; grade %s became %s", strings.Join(lost, ", "), m.Grade, grade)
	}
}

// orphans lists live devices of dmloop that no record names.
func (s *System) orphans(conn *dm.Conn, records []manifest.Manifest) ([]Status, error) {
	known, unusable := map[string]bool{}, map[string]bool{}
	for _, m := range records {
		known[m.UUID] = true
		if unreadable(m) {
			unusable[m.Name] = true
		}
	}
	devices, err := s.liveDevices(conn)
	if err != nil {
		return nil, err
	}
	var found []Status
	for _, d := range devices {
		if known[d.UUID] || unusable[d.Name] {
			continue
		}
		info, err := conn.Info(dm.ByUUID(d.UUID))
		if errors.Is(err, dm.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = append(found, Status{
			Name: info.Name, UUID: info.UUID, Device: "/dev/mapper/" + info.Name, MajMin: info.Device.String(),
			ReadOnly: info.ReadOnly, Open: info.OpenCount, Grade: string(pin.Unsafe), State: manifest.Stale,
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
func pinsInForce(img *image.Image, m manifest.Manifest, claimed func(*os.File) (bool, error)) ([]pin.Kind, error) {
	kinds, err := pin.InForce(img.File(), m.Image.Filesystem)
	if err != nil || !m.Sealed {
		return kinds, err
	}
	active, err := claimed(img.File())
	if active {
		kinds = append(kinds, pin.Swap)
	}
	return kinds, err
}

// evidence is what a grade is computed from.
func evidence(m manifest.Manifest, inForce []pin.Kind) pin.Evidence {
	return pin.Evidence{Filesystem: m.Image.Filesystem, Reflink: m.Image.Reflink, InForce: inForce, Proof: m.Proof}
}

func hasKind(kinds []pin.Kind, k pin.Kind) bool {
	for _, have := range kinds {
		if have == k {
			return true
		}
	}
	return false
}
