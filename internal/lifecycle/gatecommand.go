package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/gate"
	"dmloop/internal/image"
	"dmloop/internal/observe"
	"dmloop/internal/record"
)

// GateStatus is what is known of the gate in the kernel.
type GateStatus struct {
	Lack    error // why there can be none; nil where there can
	InForce bool
	Guarded []GatedMapping
	Refused uint64        // since the gate was put in force
	Recent  []gate.Denial // the last of it, newest last
}

// GatedMapping is one mapping as the gate knows it.
type GatedMapping struct {
	gate.Guarded
	Name  string // empty when nothing with this number is mapped
	Image string // where the record says that it is
}

// Gate returns what the gate guards and what it refused. It changes nothing.
func (s *System) Gate() (st GateStatus, err error) {
	st.Lack = gate.Unavailable()
	g, err := gate.Open()
	if errors.Is(err, gate.ErrNotLoaded) {
		return st, nil
	}
	if err != nil {
		return st, gateError(err)
	}
	defer g.Close() //nolint:errcheck // nothing is lost
	st.InForce = true
	guarded, err := g.Mappings()
	if err != nil {
		return st, err
	}
	names, err := s.numbered()
	if err != nil {
		return st, err
	}
	for _, m := range guarded {
		known := names[m.Mapping]
		st.Guarded = append(st.Guarded, GatedMapping{Guarded: m, Name: known.Name, Image: known.Image.Path})
	}
	if st.Refused, err = g.Count(); err == nil {
		st.Recent, err = g.Recent()
	}
	return st, err
}

func gateError(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return &fault.Error{Class: fault.NotPermitted, Message: "only root may look at the gate", Remedy: fault.Permission(fault.CapAdmin), Err: err}
	case errors.Is(err, gate.ErrOtherFormat):
		return &fault.Error{Class: fault.Failed, Message: err.Error(), Remedy: advice.ClearGate}
	}
	return err
}

// numbered lists the records by the numbers in their uuids.
func (s *System) numbered() (map[gate.UUID]record.Record, error) {
	store, err := s.openStore(false)
	if err != nil || store == nil {
		return nil, err
	}
	defer store.Close()
	records, err := allRecords(store, store.Head)
	if err != nil {
		return nil, err
	}
	names := map[gate.UUID]record.Record{}
	for _, m := range records {
		if e, err := observe.GuardedImage(m); err == nil {
			names[e.Mapping] = m
		}
	}
	return names, nil
}

// ClearGate takes every gate away, whatever it guards. A running guard puts it in force
// again for the mappings that want it.
func (s *System) ClearGate() error { return gateError(gate.Clear()) }

// AllowBelow runs a command that may change the table of a device which mappings stand on,
// and remove it, and verifies the mappings afterwards. The device is named by its path, or
// as device-mapper does.
func (s *System) AllowBelow(ctx context.Context, device string, command func() error) ([]Verified, error) {
	number, err := s.gatedDevice(device)
	if err != nil {
		return nil, err
	}
	if err := gate.Allow(number); err != nil {
		return nil, err
	}
	failed := errors.Join(command(), gate.Disallow())
	names, err := s.numbered()
	if err != nil {
		return nil, errors.Join(failed, err)
	}
	var on []string
	for _, m := range names {
		if m.Device != (dmtable.Device{}) {
			on = append(on, m.Name)
		}
	}
	slices.Sort(on)
	if len(on) == 0 {
		return nil, failed
	}
	checked, err := s.Verify(ctx, on...)
	return checked, errors.Join(failed, err, s.gateAnew(checked))
}

// gatedDevice finds the number of a device that the gate guards.
func (s *System) gatedDevice(name string) (dmtable.Device, error) {
	st, err := s.Gate()
	if err != nil {
		return dmtable.Device{}, err
	}
	number, err := s.deviceNumber(name)
	if err != nil {
		return number, err
	}
	for _, m := range st.Guarded {
		for _, d := range m.Devices {
			if d.Number == number && d.Kind&gate.Own == 0 {
				return number, nil
			}
		}
	}
	return number, &fault.Error{Class: fault.NotFound, Subject: name, Message: "no mapping stands on it, so the gate refuses nothing there", Remedy: advice.ClearGate}
}

func (s *System) deviceNumber(name string) (dmtable.Device, error) {
	if number, err := dmtable.ParseDevice(name); err == nil {
		return number, nil
	}
	if number, err := blockDevice(name); err == nil {
		return number, nil
	}
	conn, err := s.mapper()
	if err != nil {
		return dmtable.Device{}, err
	}
	info, err := conn.Info(dm.ByName(name))
	if errors.Is(err, dm.ErrNotFound) {
		return dmtable.Device{}, &fault.Error{Class: fault.NotFound, Subject: name, Message: "no such device"}
	}
	return info.Device, err
}

// gateAnew makes the gate guard the current tables below the mappings that are sound.
func (s *System) gateAnew(checked []Verified) error {
	conn, err := s.mapper()
	if err != nil {
		return err
	}
	store, err := s.openStore(false)
	if err != nil || store == nil {
		return err
	}
	defer store.Close()
	for _, v := range checked {
		if v.State.Broken() {
			continue
		}
		m, err := store.Load(v.Name)
		if err != nil || m.Gate != guard.GateBPF {
			continue
		}
		e, err := observe.Guarded(conn, s.sysfs, m)
		if err == nil {
			err = putInGate(e)
		}
		if err != nil {
			return fmt.Errorf("the gate guards what %s stood on before: %w", v.Name, err)
		}
	}
	return nil
}

// BestGate returns what can deny opens by others on this machine, and why that is not the
// gate in the kernel, where it is not.
func (s *System) BestGate() (best guard.Gate, why error) {
	if why = gate.Unavailable(); why == nil {
		return guard.GateBPF, nil
	}
	if denies, err := s.kernelDenies(); denies || err != nil {
		return guard.GateFanotify, why
	}
	return guard.GateNone, why
}

// gateOf returns what denies opens of a mapping's image by others, and why that is not the gate
// in the kernel. Records of earlier versions do not say: it was the guard then.
func (s *System) gateOf(m record.Record) (is guard.Gate, why error) {
	is = cmp.Or(m.Gate, guard.GateFanotify)
	if is == guard.GateBPF {
		return is, nil
	}
	if why = s.surveyor().Gated(image.Facts{Filesystem: m.Image.Filesystem}, ""); why == nil {
		why = errMappedSo
	}
	return is, why
}

var errMappedSo = errors.New("it was mapped so")
