package lifecycle

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/fstype"
	"dmloop/internal/gate"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/pin"
	"dmloop/internal/record"
	"dmloop/internal/survey"
	"dmloop/internal/swap"
)

// Map makes the mapping and returns what it is then.
func (s *System) Map(ctx context.Context, path string, o MapOptions) (Status, error) {
	name, uuid, err := o.request(path)
	if err != nil {
		return Status{}, err
	}
	found, err := find(path)
	if err != nil {
		return Status{}, err
	}
	defer found.Close()
	return s.mapFound(ctx, found, name, uuid, o)
}

// mapFound is Map of a file that was found. It seals the image only when nothing except
// the image can prevent mapping it.
func (s *System) mapFound(ctx context.Context, found *image.Found, name, uuid string, o MapOptions) (Status, error) {
	path := found.Given()
	if o.Seal {
		if err := s.canMap(found, name, uuid); err != nil {
			return Status{}, err
		}
		if err := s.seal(ctx, found, o.Pin == PinSwap); err != nil {
			return Status{}, err
		}
	}
	t, err := s.lockImage(ctx, found)
	if err != nil {
		return Status{}, err
	}
	defer t.end()
	conn, err := s.mapper()
	if err != nil {
		return Status{}, err
	}
	if err := nameFree(t.store, conn, name, uuid); err != nil {
		return Status{}, err
	}
	v, err := s.surveyor().Survey(ctx, t.img, path, o.Options)
	if err != nil {
		return Status{}, fault.Wrap(path, "", err)
	}
	s.warnOfFormat(v)
	if problems := o.judge(v); len(problems) > 0 {
		return Status{}, fault.Refuse(path, problems)
	}
	job := &mapJob{System: s, store: t.store, conn: conn, img: t.img, survey: v, options: o, probe: swap.NewProbe(t.img.File())}
	defer job.probe.Close() //nolint:errcheck // of a file without a name
	host, err := conn.Info(dm.ByDevice(v.Stack.Host))
	if err != nil {
		return Status{}, fault.Wrap(path, "reading the host device", err)
	}
	job.m = newRecord(name, uuid, t.img, v, o)
	job.m.Base.UUID = host.UUID
	if v.Stack.ReadOnly() && !o.ReadOnly {
		s.log.Warn("a device below the image is read-only, and so is the mapping", "image", path, "mapping", name)
	}
	if err := job.run(ctx); err != nil {
		undo := job.undo(context.WithoutCancel(ctx)) // the guard has to hear of it all the same
		if undo == nil && ctx.Err() != nil {         // which step it was says nothing
			return Status{}, &fault.Error{Class: fault.Failed, Subject: path, Message: "interrupted"}
		}
		return Status{}, fault.Wrap(path, "", errors.Join(err, undo))
	}
	st := s.status(ctx, conn, job.m)
	st.Guard = !o.NoGuard && !o.GuardLater // it has said so when map came to its end
	return st, nil
}

// newRecord is what is known of a mapping before it is made.
func newRecord(name, uuid string, img *image.Image, v *survey.Report, o MapOptions) record.Record {
	m := v.NewRecord(img, name, uuid)
	m.State, m.Created = guard.Mapping, time.Now().UTC()
	m.Offset, m.ReadOnly, m.OnChange, m.UdevRules, m.Guard, m.Unsafe = o.Window.Offset, o.ReadOnly || v.Stack.ReadOnly(), o.OnChange, o.UdevRules, !o.NoGuard, o.Unsafe
	return m
}

// mapJob is one run of map: the steps in order, each of which undo can take back.
type mapJob struct {
	*System
	store   *record.Store
	conn    *mapper.Mapper
	img     *image.Image
	survey  *survey.Report
	options MapOptions
	m       record.Record
	lease   *image.Lease   // the proof that nobody else has the image open; nil while there is none
	probe   *swap.Probe    // asks whether the kernel holds the image
	denies  bool           // the guard denies opens of the image by others
	ground  []gate.Device  // what the gate in the kernel guards; none without it
	staged  *record.Staged // the record that is about to be seen; nil before and after
}

func (j *mapJob) run(ctx context.Context) error {
	if err := j.chooseGate(); err != nil {
		return err
	}
	if err := j.prepareGuard(ctx); err != nil {
		return err
	}
	// From here on a killed run leaves a record that names what it made. Undoing
	// needs neither layout nor table, which may be large.
	if err := j.intend(); err != nil {
		return err
	}
	steps := []func(context.Context) error{
		j.gateImage, j.setPins, j.locateAgain, j.loadTable, j.proveStill, j.proveClaim, j.record, j.proveAlone, j.goLive,
		j.watch, j.lookOnceMore, j.addPartitions,
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	j.m.State = guard.Healthy
	return j.store.SaveHead(j.m)
}

// intend saves the record of what is about to be made. Where no file can be marked it says,
// too, that the claim is going to be dmloop's.
func (j *mapJob) intend() error {
	intent := j.m
	intent.Layout, intent.Table = extents.Layout{}, nil
	if fstype.Of(j.m.Image.Filesystem).Bare && slices.Contains(wantedPins(j.survey, j.options.Pin), pin.Swap) {
		active, err := j.probe.Active()
		if err != nil {
			return err
		}
		if !active {
			intent.Pins = []record.Pin{{Kind: pin.Swap, Ours: true}}
			j.m.Pins = intent.Pins // for undo, until it is known what is set
		}
	}
	return j.store.Save(intent)
}

// setPins pins the file, proves then that nobody else has it open, and refuses what is
// weaker than the user accepts. The gate is in force since before, so whoever is on the
// way to the file meets the gate, the flag or the lease (docs/pinning.md).
func (j *mapJob) setPins(ctx context.Context) error {
	hold := j.claim(ctx, j.img)
	hold.Unsafe, hold.Gated = j.options.Unsafe, j.m.Gate == guard.GateBPF
	if j.survey.Sealed {
		hold.Want = &j.survey.Record
	}
	ours, err := pin.Set(j.img.File(), j.m.Image.Filesystem, j.m.Name, wantedPins(j.survey, j.options.Pin), hold)
	if err != nil {
		j.m.Pins = nil // what was set is gone again
		return j.pinError(err)
	}
	inForce, err := pinsInForce(j.img, j.m, func(*os.File) (bool, error) { return j.probe.Active() })
	if err != nil {
		return err
	}
	j.m.Pins = nil
	if !slices.Contains(inForce, pin.Swap) { // which nobody's descriptor gets past, and keeps the lease from being had
		if j.lease, err = j.soleOpener(ctx, j.img, j.survey.Path, j.patience.openers); err != nil {
			return j.openError(err)
		}
		j.m.Proof = true
	}
	for _, k := range inForce {
		j.m.Pins = append(j.m.Pins, record.Pin{Kind: k, Ours: k == pin.BPF || slices.Contains(ours, k)})
	}
	grade := pin.GradeOf(evidence(j.m, inForce))
	j.m.Grade = grade
	err = j.options.accept(j.survey.Path, grade, j.denies)
	if k, lost := clearedSince(wantedPins(j.survey, j.options.Pin), ours, inForce); err != nil && lost {
		return j.cleared(k) // or it would look as if none could be set
	}
	return err
}

// openError says who has the image open.
func (j *mapJob) openError(err error) error { return pinningError(j.survey.Path, err) }

// prepareGuard starts the guard, and has the image marked before it is pinned: the
// mark goes by path, and a mark after the lease would leave a gap.
func (j *mapJob) prepareGuard(ctx context.Context) error {
	if j.options.NoGuard || j.options.GuardLater {
		return nil
	}
	if j.guard.Guard == nil {
		return &fault.Error{Class: fault.Usage, Subject: j.m.Name, Message: "no guard can be started here", Remedy: advice.MapWithoutGuard}
	}
	if err := j.guard.Ensure(ctx); err != nil {
		return &fault.Error{Class: fault.ClassOf(err), Subject: j.m.Name, Message: "no guard could be started", Err: err,
			Remedy: advice.SeeGuardHelp}
	}
	denies, err := j.guard.Prepare(ctx, j.img.File(), j.m.Gate == guard.GateFanotify)
	j.denies = j.denies || denies
	return refusal(err)
}

// watch makes the guard confirm that it watches the live mapping.
func (j *mapJob) watch(ctx context.Context) error {
	if j.options.NoGuard || j.options.GuardLater {
		return nil
	}
	// The guard reads the record, whose state stays Mapping until the guard has
	// confirmed, so that a killed run is undone.
	return refusal(j.guard.Add(ctx, j.m.Name))
}

// locateAgain reads the layout of an image that the kernel now holds: taking the
// claim may have moved blocks (f2fs).
func (j *mapJob) locateAgain(context.Context) error {
	if !slices.Contains(j.m.PinKinds(), pin.Swap) {
		return nil
	}
	if !fstype.Of(j.m.Image.Filesystem).OwnAddresses { // which stay when the device below them changes
		if same, err := extents.Same(j.img.File(), j.survey.Read); same || err != nil {
			return err
		}
	}
	now, err := extents.Read(j.img.File())
	if err != nil {
		return err
	}
	place, problems, err := j.surveyor().Locate(j.img, j.survey.File, j.survey.Sealing, now, j.options.Options)
	if err != nil {
		return err
	}
	if len(problems) > 0 {
		return fault.Refuse(j.survey.Path, problems)
	}
	j.survey.Place = place
	j.m.Layout, j.m.Table, j.m.Extents = place.Layout, place.Table, len(place.Layout.Extents)
	return nil
}

// record saves all that is known before the device goes live.
func (j *mapJob) record(context.Context) error {
	staged := j.staged
	j.staged = nil
	return staged.Commit()
}

// loadTable creates the device and gives it the table; no I/O can reach it yet.
func (j *mapJob) loadTable(context.Context) error {
	if n := len(j.m.Table); survey.CostlyFlushes(n) {
		j.log.Warn("before Linux 6.11 every flush of the device is sent once for each row of its table; an image with fewer extents is faster",
			"image", j.survey.Path, "rows", n)
	}
	info, err := j.conn.Create(j.m.Name, j.m.UUID)
	if err != nil {
		return err
	}
	j.m.Device = info.Device
	if err := j.gateDevices(); err != nil {
		return err
	}
	// The record is written while the kernel reads the table: both take long when
	// the rows are many, and nothing in it changes any more.
	var write errgroup.Group
	write.Go(func() (err error) { j.staged, err = j.store.Stage(j.m); return err })
	_, err = j.conn.Load(dm.ByUUID(j.m.UUID), j.m.Table, j.m.ReadOnly)
	return errors.Join(err, write.Wait())
}

// goLive resumes the device: from here on I/O reaches the blocks.
func (j *mapJob) goLive(context.Context) error {
	return j.conn.GoLive(j.m.Name, j.m.UUID, j.m.Device, mapper.UdevFlags(j.m))
}

// undo takes back what a failed run made. What it cannot take back stays recorded,
// for the next command.
func (j *mapJob) undo(ctx context.Context) error {
	_ = j.dropLease() // closing the image ends it as well
	if j.staged != nil {
		if err := j.staged.Discard(); err != nil {
			return err
		}
	}
	if _, err := j.store.Head(j.m.Name); errors.Is(err, record.ErrNotFound) {
		return nil
	}
	return j.finish(ctx, j.store, &j.m, j.img)
}
