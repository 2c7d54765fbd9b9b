package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/observe"
	"dmloop/internal/pin"
	"dmloop/internal/record"
	"dmloop/internal/survey"
	"dmloop/internal/swap"
)

// MapOptions are the choices of `dmloop map`.
type MapOptions struct {
	survey.Options
	Name     string // empty: the image's base name without its extension
	ReadOnly bool
	Pin      string // "auto", "immutable", "swap" or "none"
	OnChange guard.Policy
	// UdevRules is what udev may do with the content: mapper.UdevLinks or mapper.UdevAll.
	UdevRules string
	NoGuard   bool
	// GuardLater leaves the mapping to a guard that starts later and adopts it. It
	// is for a boot, when nobody else runs yet who could change the image.
	GuardLater bool
	Unsafe     bool
	UUID       string // 32 hex digits, or empty for a random one
	PartScan   bool
}

// DefaultName returns the name that an image's mapping gets: its base name
// without the extension, mangled as libdevmapper does.
func DefaultName(path string) string {
	base := filepath.Base(path)
	if ext := filepath.Ext(base); ext != base {
		base = strings.TrimSuffix(base, ext)
	}
	return base
}

// mangled returns the device-mapper name for what the user asked for.
func mangled(path, name string) (string, error) {
	if name == "" {
		name = DefaultName(path)
	}
	m, err := dmtable.Mangle(name)
	if err == nil {
		err = dmtable.CheckName(m)
	}
	if err != nil {
		return "", &fault.Error{Class: fault.Usage, Subject: name, Message: "not a name for a mapping", Err: err,
			Remedy: advice.NameMapping}
	}
	return m, nil
}

// noFile says what path is when it is no regular file.
func noFile(path string) error {
	found, err := image.Find(path)
	if err != nil {
		return openError(path, err)
	}
	found.Close()
	return nil
}

// newUUID returns the device-mapper uuid of a mapping. Its length limits the name.
func newUUID(name, id string) (string, error) {
	uuid, err := record.NewUUID(name, id)
	if err == nil {
		err = dmtable.CheckUUID(uuid)
	}
	if err != nil {
		e := &fault.Error{Class: fault.Usage, Subject: name, Message: "not a name or uuid for a mapping", Err: err}
		if errors.As(err, new(*dmtable.NameError)) {
			e.Remedy = advice.ShorterName
		}
		return "", e
	}
	return uuid, nil
}

// Check runs all rules over the image at path and leaves it as it is. Broken rules
// are in the survey, not in the error.
func (s *System) Check(ctx context.Context, path string, o survey.Options) (*survey.Report, error) {
	v, err := s.look(ctx, path, o)
	if err == nil && !v.Breaks(extents.Unpinnable) && s.surveyor().LacksGate(v.File, pin.Wanted(v.Facts.Filesystem, v.Sealed)) {
		v.Problems = append(v.Problems, survey.Gateless())
	}
	return v, err
}

// look is what Check and PlanMap have in common.
func (s *System) look(ctx context.Context, path string, o survey.Options) (*survey.Report, error) {
	img, err := s.openImage(ctx, path)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	o.Look = true
	v, err := s.surveyor().Survey(ctx, img, path, o)
	if err != nil {
		return v, fault.Wrap(path, "", err)
	}
	return v, nil
}

// Map makes the mapping and returns what it is then.
func (s *System) Map(ctx context.Context, path string, o MapOptions) (Status, error) {
	name, uuid, err := o.request(path)
	if err != nil {
		return Status{}, err
	}
	store, img, done, err := s.lockImage(ctx, path)
	if err != nil {
		return Status{}, err
	}
	defer done()
	conn, err := s.mapper()
	if err != nil {
		return Status{}, err
	}
	if err := s.nameFree(store, conn, name, uuid); err != nil {
		return Status{}, err
	}
	v, err := s.surveyor().Survey(ctx, img, path, o.Options)
	if err != nil {
		return Status{}, fault.Wrap(path, "", err)
	}
	if problems := o.judge(v); len(problems) > 0 {
		return Status{}, fault.Refuse(path, problems)
	}
	job := &mapJob{System: s, store: store, conn: conn, img: img, survey: v, options: o, probe: swap.NewProbe(img.File())}
	defer job.probe.Close() //nolint:errcheck // of a file without a name
	host, err := conn.Info(dm.ByDevice(v.Stack.Host))
	if err != nil {
		return Status{}, fault.Wrap(path, "reading the host device", err)
	}
	job.m = newManifest(name, uuid, img, v, o)
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

// request returns the device-mapper name and uuid that the options ask for.
func (o *MapOptions) request(path string) (name, uuid string, err error) {
	if name, err = mangled(path, o.Name); err != nil {
		if what := noFile(path); o.Name == "" && what != nil {
			err = what // such as a dot, which is not the name's fault
		}
		return "", "", err
	}
	if err := o.validate(); err != nil {
		return "", "", err
	}
	uuid, err = newUUID(name, o.UUID)
	return name, uuid, err
}

func newManifest(name, uuid string, img *image.Image, v *survey.Report, o MapOptions) record.Record {
	id := v.Identity
	var below []record.Below
	for _, b := range v.Stack.Base {
		below = append(below, record.Below{Device: b.Device, Name: b.Name})
	}
	return record.Record{
		Name: name, UUID: uuid, State: guard.Mapping,
		Image: record.Image{
			Path: img.Path(), Major: id.Major, Minor: id.Minor, Inode: id.Inode, Generation: id.Generation,
			Birth: id.Birth, Size: id.Size, Filesystem: v.Facts.Filesystem, Reflink: v.Facts.Reflink,
			Handle: observe.FileHandle(img), FSUUID: observe.FilesystemUUID(img.File(), v.Facts.Filesystem),
			Folder: observe.FolderHandle(img),
		},
		Offset: o.Window.Offset, Size: v.Length, ReadOnly: o.ReadOnly || v.Stack.ReadOnly(), Sealed: v.Sealed,
		Extents: len(v.Layout.Extents), OnChange: o.OnChange, UdevRules: o.UdevRules, Guard: !o.NoGuard, Unsafe: o.Unsafe,
		Created: time.Now().UTC(), Layout: v.Layout, Table: v.Table,
		Base: record.Base{Device: v.Stack.Host, Name: v.Stack.HostName, Table: v.Stack.HostTable.String()}, Below: below,
	}
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
	staged  *record.Staged // the record that is about to be seen; nil before and after
}

func (j *mapJob) run(ctx context.Context) error {
	if err := j.prepareGuard(ctx); err != nil {
		return err
	}
	// From here on a killed run leaves a record that names what it made. Undoing
	// needs neither layout nor table, which may be large.
	intent := j.m
	intent.Layout, intent.Table = extents.Layout{}, nil
	if err := j.store.Save(intent); err != nil {
		return err
	}
	steps := []func(context.Context) error{
		j.setPins, j.locateAgain, j.loadTable, j.proveStill, j.proveClaim, j.record, j.proveAlone, j.goLive,
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

// setPins pins the file, proves then that nobody else has it open, and refuses what is
// weaker than the user accepts. The gate is in force since before, so whoever is on the
// way to the file meets the gate, the flag or the lease (docs/pinning.md).
func (j *mapJob) setPins(ctx context.Context) error {
	hold := j.claim(ctx, j.img)
	hold.Unsafe = j.options.Unsafe
	if j.survey.Sealed {
		hold.Want = &j.survey.Record
	}
	ours, err := pin.Set(j.img.File(), j.m.Image.Filesystem, j.m.Name, wantedPins(j.survey, j.options.Pin), hold)
	if err != nil {
		return j.pinError(err)
	}
	inForce, err := pinsInForce(j.img, j.m, func(*os.File) (bool, error) { return j.probe.Active() })
	if err != nil {
		return err
	}
	if !slices.Contains(inForce, pin.Swap) { // which nobody's descriptor gets past, and keeps the lease from being had
		if j.lease, err = j.soleOpener(ctx, j.img, j.survey.Path, j.patience.openers); err != nil {
			return j.openError(err)
		}
		j.m.Proof = true
	}
	for _, k := range inForce {
		j.m.Pins = append(j.m.Pins, record.Pin{Kind: k, Ours: slices.Contains(ours, k)})
	}
	grade := pin.GradeOf(evidence(j.m, inForce))
	j.m.Grade = grade
	err = j.options.accept(j.survey.Path, grade, j.denies)
	if k, lost := clearedSince(wantedPins(j.survey, j.options.Pin), ours, inForce); err != nil && lost {
		return j.cleared(k) // or it would look as if none could be had
	}
	return err
}

// clearedSince returns a pin that was wanted, is ours and is not in force.
func clearedSince(wanted, ours, inForce []pin.Kind) (pin.Kind, bool) {
	for _, k := range wanted {
		if slices.Contains(ours, k) && !slices.Contains(inForce, k) {
			return k, true
		}
	}
	return "", false
}

// cleared says that a pin of ours went while map was at work.
func (j *mapJob) cleared(k pin.Kind) error {
	return fault.Refuse(j.survey.Path, []extents.Problem{{Rule: extents.Unpinnable,
		Message: fmt.Sprintf("somebody cleared the pin %s while the image was being mapped", k),
		Remedy:  advice.SeeChattr}})
}

// openError says who has the image open.
func (j *mapJob) openError(err error) error { return pinningError(j.survey.Path, err) }

// proveAlone asks, as the last thing before the device goes live, whether the lease is
// whole still. Somebody who waits for its end began to open the image before it was
// pinned: he is let in and, when he has gone, everything is proved again.
func (j *mapJob) proveAlone(ctx context.Context) error {
	if j.lease == nil {
		return nil
	}
	for end := time.Now().Add(j.patience.openers); ; {
		whole, err := j.lease.Whole()
		if err := errors.Join(err, j.dropLease()); err != nil || whole {
			return err
		}
		if j.lease, err = j.soleOpener(ctx, j.img, j.survey.Path, time.Until(end)); err != nil {
			return j.openError(err)
		}
		if err := j.proveStill(ctx); err != nil {
			return err
		}
		if time.Now().After(end) {
			return fault.Refuse(j.survey.Path, []extents.Problem{{Rule: extents.OpenElsewhere,
				Message: "somebody opens the file again and again", Remedy: advice.SeeOpeners}})
		}
	}
}

func (j *mapJob) dropLease() error {
	if j.lease == nil {
		return nil
	}
	err := j.lease.Release()
	j.lease = nil
	return err
}

// lookOnceMore asks without a guard what the guard's first check asks: whether somebody
// has the image open for writing all the same. He would have passed the check of the
// flag before it was set, and slept since then where nothing makes him sleep.
func (j *mapJob) lookOnceMore(context.Context) error {
	watched := !j.options.NoGuard && !j.options.GuardLater
	if watched || slices.Contains(j.m.PinKinds(), pin.Swap) || observe.OthersOpen(j.img) != guard.Writers {
		return nil
	}
	return fault.Refuse(j.survey.Path, []extents.Problem{{Rule: extents.OpenElsewhere,
		Message: "somebody opened the file for writing while it was being mapped", Remedy: advice.SeeOpeners}})
}

// accept is the rule unpinnable, once the grade is known.
func (o *MapOptions) accept(path string, grade pin.Grade, denies bool) error {
	switch {
	case grade == pin.Kernel, o.Unsafe, grade == pin.Guarded && !o.NoGuard && (denies || o.GuardLater):
		return nil
	case grade == pin.Guarded && o.NoGuard:
		return fault.Refuse(path, []extents.Problem{{Rule: extents.Unpinnable,
			Message: "the pin has a hole that only a running guard closes (grade guarded)",
			Remedy:  advice.UseGuard}})
	case grade == pin.Guarded:
		return fault.Refuse(path, []extents.Problem{survey.Gateless()})
	}
	return fault.Refuse(path, []extents.Problem{{Rule: extents.Unpinnable,
		Message: "nothing that is in force keeps the blocks in place (grade unsafe)",
		Remedy:  advice.UsePins}})
}

// locateAgain reads the layout of an image that the kernel now holds: taking the
// claim may have moved blocks (f2fs).
func (j *mapJob) locateAgain(context.Context) error {
	if !slices.Contains(j.m.PinKinds(), pin.Swap) {
		return nil
	}
	if j.m.Image.Filesystem != "btrfs" { // whose addresses stay when the device below them changes
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
		j.log.Warn("before Linux 6.11 every flush of the device is sent once for each row of its table; an image in fewer pieces is faster",
			"image", j.survey.Path, "rows", n)
	}
	info, err := j.conn.Create(j.m.Name, j.m.UUID)
	if err != nil {
		return err
	}
	j.m.Device = info.Device
	// The record is written while the kernel reads the table: both take long when
	// the rows are many, and nothing in it changes any more.
	var write errgroup.Group
	write.Go(func() (err error) { j.staged, err = j.store.Stage(j.m); return err })
	_, err = j.conn.Load(dm.ByUUID(j.m.UUID), j.m.Table, j.m.ReadOnly)
	return errors.Join(err, write.Wait())
}

// proveStill reads everything once more, now that the pins hold and the kernel has
// accepted the table, and compares: the device goes live only on what is true now.
func (j *mapJob) proveStill(ctx context.Context) error {
	cache, err := j.img.DropCache(ctx)
	if err != nil {
		return err
	}
	if problems := emptyCache(cache); len(problems) > 0 {
		return fault.Refuse(j.survey.Path, problems)
	}
	if err := j.provePins(); err != nil {
		return err
	}
	if err := j.proveLayout(); err != nil {
		return err
	}
	id, err := j.img.Identity()
	if err != nil {
		return err
	}
	if id != j.survey.Identity {
		return fault.Refuse(j.survey.Path, []extents.Problem{survey.Unstable("the file's size or identity changed")})
	}
	host, err := j.conn.Table(dm.ByDevice(j.survey.Stack.Host))
	if err != nil {
		return fmt.Errorf("reading the table of the host device again: %w", err)
	}
	if diff := j.m.Table.Standing(j.survey.Stack.HostTable, host); diff != "" {
		return fault.Refuse(j.survey.Path, []extents.Problem{survey.Unstable("the host device was changed: " + diff)})
	}
	return nil
}

// provePins proves that the flags are still set that were when the image was pinned: who
// waited for a lease of ours may have cleared one, root or, on f2fs, anybody. It does not
// ask about the claim: that would end the lease, and an image with a claim has none.
func (j *mapJob) provePins() error {
	now, err := pin.InForce(j.img.File(), j.m.Image.Filesystem)
	if err != nil {
		return err
	}
	for _, p := range j.m.Pins {
		if k := p.Kind; k != pin.Swap && !slices.Contains(now, k) {
			return j.cleared(k)
		}
	}
	return nil
}

// proveClaim proves that the kernel still holds a sealed image: the layout was read
// while it did, and stands while it does.
func (j *mapJob) proveClaim(context.Context) error {
	if !slices.Contains(j.m.PinKinds(), pin.Swap) {
		return nil
	}
	active, err := j.probe.Active()
	if err != nil {
		return fmt.Errorf("proving that the kernel holds the image as a swap file: %w", err)
	}
	if !active {
		return fault.Refuse(j.survey.Path, []extents.Problem{{Rule: extents.Unpinnable,
			Message: "somebody ended the kernel's hold on the image while it was being mapped (swapoff)",
			Remedy:  advice.SeeSwapoff}})
	}
	return nil
}

// proveLayout compares the layout of now with the one in the table.
func (j *mapJob) proveLayout() error {
	same, err := extents.Same(j.img.File(), j.survey.Read)
	if same || err != nil {
		return err
	}
	now, err := extents.Read(j.img.File())
	if err != nil {
		return err
	}
	if problems := now.Problems(j.survey.Facts.BlockSize, 0); len(problems) > 0 {
		return fault.Refuse(j.survey.Path, problems)
	}
	if diff := extents.Diff(j.m.Layout, now.Clip().Merge()); diff != "" {
		return fault.Refuse(j.survey.Path, []extents.Problem{survey.Unstable(diff)})
	}
	return nil
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

// emptyCache is the rule dirty-cache at the moment of truth: not one page may be
// left, since a clean one would hide from readers of the file what the device
// writes. The lease has shown that nobody has the file mapped.
func emptyCache(c image.CacheState) []extents.Problem {
	problems := c.Problems()
	if len(problems) == 0 && c.Cached > 0 {
		problems = []extents.Problem{{Rule: extents.DirtyCache,
			Message: fmt.Sprintf("%d pages of the file stay in memory after they were dropped", c.Cached),
			Remedy:  advice.SeeReaders}}
	}
	return problems
}
