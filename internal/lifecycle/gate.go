package lifecycle

import (
	"context"
	"errors"
	"fmt"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/gate"
	"dmloop/internal/observe"
	"dmloop/internal/pin"
	"dmloop/internal/record"
	"dmloop/internal/survey"
)

// GateAuto is the choice of --gate that takes the best gate that this kernel can have.
const GateAuto = "auto"

// chooseGate decides what denies opens of the image by others, and puts the gate in the
// kernel in force where it is that. The guard's gate is for images that need one: every opener
// on the machine waits for it.
func (j *mapJob) chooseGate() error {
	choice := j.options.Gate
	if choice == "" || choice == guard.GateBPF {
		err := j.surveyor().Gated(j.survey.Facts, choice)
		if err == nil {
			err = inForce()
		}
		switch {
		case err == nil:
			j.m.Gate, j.denies = guard.GateBPF, true
			return nil
		case choice == guard.GateBPF:
			return gateLacks(j.survey.Path, err)
		}
		j.log.Debug("the gate in the kernel cannot be had", "image", j.survey.Path, "why", err)
	}
	watched := !j.options.NoGuard
	needed := survey.Resulting(j.survey.Facts, wantedPins(j.survey, j.options.Pin)) != pin.Kernel
	j.m.Gate = guard.GateNone
	if watched && (choice == guard.GateFanotify || choice == "" && needed) {
		j.m.Gate = guard.GateFanotify
	}
	return nil
}

func gateLacks(path string, err error) error {
	e := &fault.Error{Class: fault.KernelLacks, Subject: path, Message: "the gate in the kernel cannot be had", Err: err, Remedy: advice.GateAuto}
	var lack *gate.Lack
	if errors.As(err, &lack) && lack.Parameter != "" {
		e.Remedy = advice.AddParameter.Of(lack.Parameter)
	}
	return e
}

// inForce puts the gate in force, and lets this process pass.
func inForce() error { return errors.Join(gate.Load(), gate.Again()) }

// putInGate makes the gate guard an entry. The gate may have been taken away since it was
// put in force, with the last mapping.
func putInGate(e gate.Entry) error {
	for tries := 3; ; tries-- {
		g, err := gate.Open()
		if err == nil {
			err = errors.Join(g.Put(e), g.Close())
		}
		if !errors.Is(err, gate.ErrNotLoaded) || tries == 0 {
			return err
		}
		if err := inForce(); err != nil {
			return err
		}
	}
}

// gateImage makes the gate guard the image, which has no pins yet.
func (j *mapJob) gateImage(context.Context) error { return repinning(j.m) }

// repinning makes the gate guard an image while its pins are set or cleared, when the device is not
// there: for a moment it may have none.
func repinning(m record.Record) error {
	if m.Gate != guard.GateBPF {
		return nil
	}
	e, err := observe.GuardedImage(m)
	if err != nil {
		return err
	}
	e.Pinning = true
	return putInGate(e)
}

// gateAgain puts the gate in force again for a live mapping that had it, such as one that an
// initramfs mapped from its record, and reports whether it guards it. Where it does not, the
// pins have to do, and verify says so; an image that others may open is not claimed then.
func (s *System) gateAgain(m record.Record, pinning bool) (gated bool) {
	if m.Gate != guard.GateBPF {
		return false
	}
	conn, err := s.mapper()
	var e gate.Entry
	if err == nil {
		e, err = observe.Guarded(conn, s.sysfs, m)
	}
	if err == nil {
		err = inForce()
	}
	if err == nil {
		e.Pinning = pinning
		err = putInGate(e)
	}
	if err != nil {
		s.log.Warn("the gate in the kernel does not guard the mapping", "mapping", m.Name, "error", err)
	}
	return err == nil
}

// gateDevices makes the gate guard the devices as well, before the mapping's own has a table.
func (j *mapJob) gateDevices() error {
	if j.m.Gate != guard.GateBPF {
		return nil
	}
	e, err := observe.Guarded(j.conn, j.sysfs, j.m)
	if err != nil {
		return err
	}
	j.ground = e.Devices
	return putInGate(e)
}

// proveNoneWaits proves that no table from before the gate was in force waits for a
// resume, which nobody refuses.
func (j *mapJob) proveNoneWaits() error {
	for _, d := range j.ground {
		if d.Kind&gate.Below == 0 || d.Name == "" {
			continue
		}
		info, err := j.conn.Info(dm.ByDevice(d.Number))
		if err != nil {
			return fmt.Errorf("looking at %s below the image: %w", d.Name, err)
		}
		if info.InactiveTable {
			return fault.Refuse(j.survey.Path, []extents.Problem{survey.Unstable("another table of " + d.Name + " waits to be resumed")})
		}
	}
	return nil
}

// ungate makes the gate stop guarding a mapping whose image no longer has its pins. The gate goes
// with the last one, unless a guard runs, which keeps it for the next.
func (s *System) ungate(ctx context.Context, m record.Record) error {
	g, err := gate.Open()
	if errors.Is(err, gate.ErrNotLoaded) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the gate still guards the image: %w", err)
	}
	defer g.Close() //nolint:errcheck // nothing is lost
	e, err := observe.GuardedImage(m)
	if err != nil {
		return err
	}
	err = g.Take(e.Mapping)
	if err == nil && s.guard.watched(ctx) == nil {
		err = g.Unload()
	}
	if err != nil && !errors.Is(err, gate.ErrNotLoaded) {
		return fmt.Errorf("the gate still guards the image: %w", err)
	}
	return nil
}

// sweepGate makes the gate guard nothing of mappings that have neither record nor device: a
// command was killed between its last steps. What it cannot do it says in the log.
func (s *System) sweepGate(ctx context.Context, t *turn) {
	g, err := gate.Open()
	if errors.Is(err, gate.ErrNotLoaded) {
		err = gate.Tidy()
	}
	if err != nil {
		s.log.Warn("the gate cannot be looked at", "error", err)
	}
	if g == nil {
		return
	}
	defer g.Close() //nolint:errcheck // nothing is lost
	if err := s.takeStrays(ctx, t.store, g); err != nil && !errors.Is(err, gate.ErrNotLoaded) {
		s.log.Warn("the gate may guard more than what is mapped", "error", err)
	}
}

func (s *System) takeStrays(ctx context.Context, store *record.Store, g *gate.Gate) error {
	known, names, err := s.knownNumbers(store)
	if err != nil {
		return err
	}
	gone, left, err := g.Settle(known, names)
	if err != nil {
		return err
	}
	if gone > 0 {
		s.log.Info("the gate guarded what is no longer mapped", "mappings", gone)
	}
	if left == 0 && s.guard.watched(ctx) == nil {
		return g.Unload()
	}
	return nil
}

// knownNumbers lists the mappings that have a record or a device, and says how to ask for the
// names of all device-mapper devices.
func (s *System) knownNumbers(store *record.Store) (known []gate.UUID, names func() (map[dmtable.Device]string, error), err error) {
	records, err := allRecords(store, store.Head)
	if err != nil {
		return nil, nil, err
	}
	conn, err := s.mapper()
	if err != nil {
		return nil, nil, err
	}
	devices, err := conn.List()
	if err != nil {
		return nil, nil, err
	}
	add := func(uuid string) {
		if digits, ok := record.Number(uuid); ok {
			if id, err := gate.ParseUUID(digits); err == nil {
				known = append(known, id)
			}
		}
	}
	for _, m := range records {
		add(m.UUID)
	}
	for _, d := range devices {
		add(d.UUID)
	}
	return known, func() (map[dmtable.Device]string, error) {
		devices, err := conn.List()
		names := map[dmtable.Device]string{}
		for _, d := range devices {
			names[d.Device] = d.Name
		}
		return names, err
	}, nil
}
