package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/backing"
	"dmloop/internal/blockdev"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/observe"
	"dmloop/internal/pin"
	"dmloop/internal/record"
	"dmloop/internal/survey"
)

// growth is one run of grow on a mapped image, or of what settles a killed one.
type growth struct {
	*System
	store  *record.Store
	conn   *mapper.Mapper
	img    *image.Image
	m      record.Record // as the mapping is in force, with the intent
	now    record.Record // as it will be
	gated  bool          // the gate in the kernel guards the image
	lifted bool          // the immutable flag may be off
}

// growMapped is Grow of an image whose mapping goes on meanwhile.
//
// The record names both sizes before anything is changed, so that whoever finds it after a
// kill knows what is new. Until the record has the new table the file can be cut again: no
// table that is live or waits names the new blocks then. From there on it only goes forward.
func (s *System) growMapped(ctx context.Context, t *turn, m record.Record, o GrowOptions) (Grown, error) {
	j, err := s.growthOf(ctx, t, m)
	if err != nil {
		return Grown{}, fault.Wrap(m.Name, "", err)
	}
	defer j.img.Close()
	size, err := o.of(m.Name, m.Size)
	if err != nil {
		return Grown{}, err
	}
	info, err := j.conn.Info(dm.ByUUID(m.UUID))
	if errors.Is(err, dm.ErrNotFound) {
		err = &fault.Error{Class: fault.StaleMapping, Message: "its device is gone", Remedy: advice.UnmapAndCheck.Of(m.Image.Path)}
	}
	if err != nil {
		return Grown{}, fault.Wrap(m.Name, "", err)
	}
	g := Grown{Name: m.Name, Device: mapper.Folder + info.Name, Image: m.Image.Path, Old: m.Size, Size: size, Extents: m.Extents, Sealed: m.Sealed}
	if size == m.Size {
		return g, nil
	}
	if err := j.allowed(ctx, info, m.Offset+size); err != nil {
		return Grown{}, err
	}
	if err := j.intend(ctx, m.Offset+size, o.Unsafe); err != nil {
		return Grown{}, err
	}
	if err := j.append(ctx, o); err != nil {
		undo := j.undo(context.WithoutCancel(ctx))
		if undo == nil && ctx.Err() != nil {
			return Grown{}, &fault.Error{Class: fault.Failed, Subject: m.Name, Message: "interrupted"}
		}
		return Grown{}, errors.Join(err, undo)
	}
	if err := j.exchange(context.WithoutCancel(ctx)); err != nil {
		return Grown{}, fault.Wrap(m.Name, "", err)
	}
	g.Extents = j.now.Extents
	g.GPT, err = deviceHasGPT(g.Device)
	return g, err
}

func deviceHasGPT(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return blockdev.HasGPT(f)
}

// growthOf opens what a growth works on.
func (s *System) growthOf(ctx context.Context, t *turn, m record.Record) (*growth, error) {
	conn, err := s.mapper()
	if err != nil {
		return nil, err
	}
	img, err := s.openToChange(ctx, t.asleep, m)
	if err != nil {
		return nil, err
	}
	return &growth{System: s, store: t.store, conn: conn, img: img, m: m}, nil
}

// refuse says why the mapping cannot become longer.
func (j *growth) refuse(class fault.Class, remedy extents.Remedy, format string, args ...any) error {
	return &fault.Error{Class: class, Subject: j.m.Image.Path, Message: fmt.Sprintf(format, args...), Remedy: remedy.Of(j.m.Name)}
}

// allowed refuses what keeps the mapping from becoming longer, before anything is changed.
func (j *growth) allowed(ctx context.Context, info dm.Info, to extents.Bytes) error {
	m := j.m
	if v := j.verify(ctx, m); v.State != guard.Healthy && v.State != guard.Weakened {
		return &fault.Error{Class: fault.StaleMapping, Subject: m.Name, Message: fmt.Sprintf("the mapping is %s: %s", v.State, v.Reason),
			Remedy: advice.UnmapAndCheck.Of(m.Image.Path)}
	}
	facts, err := j.img.Facts()
	if err != nil {
		return fault.Wrap(m.Name, "", err)
	}
	i := slices.IndexFunc(m.Pins, func(p record.Pin) bool { return p.Kind == pin.Immutable })
	switch {
	case m.Sealed:
		return j.refuse(fault.Busy, advice.UnmapToGrow, "the image is sealed, and the kernel, which holds it, lets nobody make it longer while it is mapped as %s", m.Name)
	case m.Offset+m.Size != m.Image.Size:
		return j.refuse(fault.Busy, advice.MapWhole, "it is mapped as %s with a size limit, which ends before the image does: the device does not become longer with it", m.Name)
	case i >= 0 && !m.Pins[i].Ours:
		return j.refuse(fault.NotPermitted, advice.UnmapToGrow, "somebody else made it immutable, which is not dmloop's to lift")
	case info.Suspended, info.InactiveTable:
		return j.refuse(fault.Busy, advice.SeeTable, "its device is suspended, or another table of it waits to be resumed")
	case m.Image.Size%facts.BlockSize != 0:
		return j.refuse(fault.Busy, advice.UnmapToGrow, "it ends within a block of the file system, whose rest the file system would write zeros to, over what the device writes there")
	}
	if problems := backing.SizeProblems(to, facts.BlockSize); len(problems) > 0 {
		return extents.Refuse(m.Image.Path, problems...)
	}
	return j.surveyor().NotLive(j.img, m.Image.Filesystem, m.UUID)
}

// intend records what is going to happen, tells the guard, and refuses where nothing would keep
// others out while the immutable flag is off.
func (j *growth) intend(ctx context.Context, to extents.Bytes, unsafe bool) error {
	j.m.Growing = &record.Growing{From: j.m.Image.Size, To: to}
	if err := j.store.SaveHead(j.m); err != nil {
		return err
	}
	err := j.tellGuard(ctx)
	if err == nil {
		err = j.covered(ctx, unsafe)
	}
	if err != nil {
		return errors.Join(err, j.settled(ctx))
	}
	return nil
}

// tellGuard has the guard confirm that it knows.
func (j *growth) tellGuard(ctx context.Context) error {
	if !j.guard.watched(ctx)[j.m.Name] {
		return j.guard.hung
	}
	return refusal(j.guard.Grow(ctx, j.m.Name))
}

// covered refuses to lift the immutable flag where nobody denies opens and changes of the image
// by others meanwhile. The guard's gate sees opens only: what others can do to the file by its
// path alone (truncate(2)) must be root's.
func (j *growth) covered(ctx context.Context, unsafe bool) error {
	if !slices.Contains(j.m.PinKinds(), pin.Immutable) {
		return nil // nothing is lifted
	}
	if j.gated = j.gateAgain(j.m, true); j.gated {
		return nil
	}
	denies, err := j.guardDenies(ctx)
	if err != nil || denies || unsafe {
		return err
	}
	return j.refuse(fault.Busy, advice.UnmapToGrow,
		"its immutable flag would be off while it is made longer, and neither the gate in the kernel nor a guard keeps others out meanwhile")
}

// guardDenies has the guard deny opens of the image by others for as long as this process is
// connected, and reports whether that is enough.
func (j *growth) guardDenies(ctx context.Context) (bool, error) {
	byGuard := j.m.Gate == "" || j.m.Gate == guard.GateFanotify
	if !byGuard || !j.guard.watched(ctx)[j.m.Name] {
		return false, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(j.img.File().Fd()), &st); err != nil {
		return false, fault.Wrap(j.m.Name, "", err)
	}
	if st.Uid != 0 || st.Mode&0o022 != 0 {
		return false, nil
	}
	denies, err := j.guard.Prepare(ctx, j.img.File(), true)
	return denies, refusal(err)
}

// append makes the file longer, pins it again and proves everything, and loads the table of
// the longer image, which is not live yet.
func (j *growth) append(ctx context.Context, o GrowOptions) error {
	j.lifted = true
	if err := pin.Lift(j.img.File(), j.m.Image.Filesystem); err != nil {
		return fault.Wrap(j.m.Name, "", err)
	}
	if err := j.lengthen(ctx, o); err != nil {
		return err
	}
	if err := j.pinAgain(ctx); err != nil {
		return err
	}
	if err := j.prove(ctx); err != nil {
		return err
	}
	return j.load()
}

// lengthen writes through a descriptor that is closed before the pins are proved.
func (j *growth) lengthen(ctx context.Context, o GrowOptions) error {
	writable, err := j.writable()
	if err != nil {
		return err
	}
	err = backing.Grow(ctx, writable, j.m.Growing.To, backing.GrowOptions{Progress: o.Progress, Live: true})
	return errors.Join(err, writable.Close())
}

// writable opens the image for writing, which the caller closes.
func (j *growth) writable() (*image.Image, error) {
	rw, err := j.img.OpenForWriting()
	if err != nil {
		return nil, openError(j.m.Image.Path, err)
	}
	writable, err := image.Adopt(rw)
	if err != nil {
		return nil, errors.Join(err, rw.Close())
	}
	return writable, nil
}

// pinAgain sets the pins that dmloop set.
func (j *growth) pinAgain(ctx context.Context) error {
	hold := j.claim(ctx, j.img)
	hold.Unsafe, hold.Gated = j.m.Unsafe, j.gated
	if _, err := pin.Set(j.img.File(), j.m.Image.Filesystem, j.m.Name, j.m.OurPins(), hold); err != nil {
		return fault.Wrap(j.m.Name, "", pinningError(j.m.Image.Path, err))
	}
	j.lifted = false
	return nil
}

// prove looks at the image as map does, under a lease that shows that nobody else has it open,
// and compares the old part with the record.
func (j *growth) prove(ctx context.Context) error {
	m := j.m
	options := survey.Options{Window: survey.Window{Offset: m.Offset}, MaxExtents: max(survey.DefaultMaxExtents, m.Extents), Own: m.UUID, Gate: m.Gate}
	v, err := j.surveyor().Survey(ctx, j.img, m.Image.Path, options)
	if err != nil {
		return fault.Wrap(m.Name, "", err)
	}
	o := MapOptions{Pin: PinAuto, Unsafe: m.Unsafe}
	if len(m.OurPins()) == 0 {
		o.Pin = PinNone
	}
	problems := o.judge(v)
	st, err := j.img.Status()
	if err != nil {
		return err
	}
	if st.Links == 0 {
		problems = []extents.Problem{survey.Unstable("the image was deleted")}
	}
	if len(problems) == 0 {
		cache, err := j.img.DropCache(ctx)
		if err != nil {
			return err
		}
		problems = emptyCache(cache)
	}
	if len(problems) == 0 {
		problems = j.unlike(v)
	}
	if len(problems) > 0 {
		return fault.Refuse(m.Image.Path, problems)
	}
	fresh := v.NewRecord(j.img, m.Name, m.UUID)
	now := m
	now.Size, now.Image.Size, now.Extents, now.Layout, now.Table = v.Length, v.Identity.Size, fresh.Extents, fresh.Layout, fresh.Table
	now.Below, now.Base.Table = fresh.Below, fresh.Base.Table
	now.Proof = slices.Contains(m.PinKinds(), pin.Immutable)
	j.now = now
	return nil
}

// unlike compares what was read with the record, as far as the image goes back.
func (j *growth) unlike(v *survey.Report) []extents.Problem {
	m := j.m
	switch {
	case !m.Image.SameFile(v.Identity.FileID):
		return []extents.Problem{survey.Unstable("the image is another file")}
	case v.Identity.Size != m.Growing.To:
		return []extents.Problem{survey.Unstable(fmt.Sprintf("the size is %d bytes instead of %d", v.Identity.Size, m.Growing.To))}
	case v.Stack.Host != m.Base.Device:
		return []extents.Problem{survey.Unstable("the image is on another device")}
	}
	old, err := v.Layout.Window(0, m.Growing.From)
	if err != nil {
		return []extents.Problem{survey.Unstable(err.Error())}
	}
	if diff := extents.Diff(m.Layout, old); diff != "" {
		return []extents.Problem{survey.Unstable(diff)}
	}
	if !v.Table.Begins(m.Table) {
		return []extents.Problem{survey.Unstable("the table does not go on where it ended: " + m.Table.Diff(v.Table))}
	}
	return nil
}

// load has the gate guard what the new rows lie on, and then loads them.
func (j *growth) load() error {
	if j.gated {
		e, err := observe.Guarded(j.conn, j.sysfs, j.now)
		if err == nil {
			err = putInGate(e)
		}
		if err != nil {
			return fault.Wrap(j.m.Name, "", err)
		}
	}
	info, host, err := j.conn.State(dm.ByDevice(j.m.Base.Device))
	if err != nil {
		return fault.Wrap(j.m.Name, "reading the table of the host device again", err)
	}
	was, err := dmtable.ParseText(j.now.Base.Table)
	if err != nil {
		return fault.Wrap(j.m.Name, "", err)
	}
	diff := j.now.Table.Standing(was, host)
	if diff == "" && info.InactiveTable {
		diff = "another table of it waits to be resumed"
	}
	if diff != "" {
		return fault.Refuse(j.m.Image.Path, []extents.Problem{survey.Unstable("the host device was changed: " + diff)})
	}
	if err := j.runs(false); err != nil {
		return err
	}
	_, err = j.conn.Load(dm.ByUUID(j.m.UUID), j.now.Table, j.now.ReadOnly)
	return fault.Wrap(j.m.Name, "", err)
}

// runs refuses a device that somebody stopped meanwhile, the guard perhaps: the new table would bring
// it back to life. With waiting the new table has to wait there, too.
func (j *growth) runs(waiting bool) error {
	info, live, err := j.conn.State(dm.ByUUID(j.m.UUID))
	switch {
	case err != nil:
		return fault.Wrap(j.m.Name, "", err)
	case info.Suspended:
		return j.refuse(fault.Busy, advice.SeeTable, "the device of %s was suspended while it was made longer", j.m.Name)
	case !j.now.Table.Begins(live) || waiting && !info.InactiveTable:
		return j.refuse(fault.StaleMapping, advice.SeeTable, "the device of %s was given another table while it was made longer", j.m.Name)
	}
	return nil
}

// exchange records the longer image and makes its table live. The intent stays recorded
// until the guard knows the new layout.
func (j *growth) exchange(ctx context.Context) error {
	if err := j.store.Save(j.now); err != nil {
		return errors.Join(err, j.undo(ctx))
	}
	j.m = j.now
	if err := j.runs(true); err != nil {
		_, clear := j.conn.Clear(dm.ByUUID(j.m.UUID))
		return errors.Join(err, clear)
	}
	if err := j.conn.Exchange(j.m.Name, j.m.UUID, mapper.UdevFlags(j.m)); err != nil {
		return err
	}
	live, err := j.conn.Table(dm.ByUUID(j.m.UUID))
	if err != nil {
		return err
	}
	if !live.Equal(j.m.Table) {
		return &fault.Error{Class: fault.StaleMapping, Subject: j.m.Name, Message: "the device has not the table that was loaded", Remedy: advice.SeeTable.Of(j.m.Name)}
	}
	return j.settled(ctx)
}

// settled has the guard take the mapping as the record says, and ends the intent. In this
// order: a check that began before judges by the record still that names both sizes.
func (j *growth) settled(ctx context.Context) error {
	var err error
	if j.guard.watched(ctx)[j.m.Name] {
		err = refusal(j.guard.Add(ctx, j.m.Name))
	}
	if j.m.Gate == guard.GateBPF {
		j.gateAgain(j.m, false)
	}
	j.m.Growing = nil
	return errors.Join(err, j.store.SaveHead(j.m))
}
