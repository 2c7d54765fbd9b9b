package observe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/blockdev"
	"dmloop/internal/dm"
	"dmloop/internal/frozen"
	"dmloop/internal/gate"
	"dmloop/internal/image"
	"dmloop/internal/inode"
	"dmloop/internal/pin"
	"dmloop/internal/record"
	"dmloop/internal/swap"
)

// Mapper is what a Reader asks device-mapper.
type Mapper interface {
	Info(dm.Ref) (dm.Info, error)
	State(dm.Ref) (dm.Info, dmtable.Table, error)
	Table(dm.Ref) (dmtable.Table, error)
	TableLike(dm.Ref, dmtable.Table) (dmtable.Table, error)
	Deps(dm.Ref) ([]dmtable.Device, error)
}

// Reader reads the state of one mapping. It implements guard.World.
type Reader struct {
	Mapper Mapper
	Image  *image.Image // open for reading
	Record record.Record
	// Leases makes Quick ask who else has the image open. Image's must then be the only
	// descriptor of this process.
	Leases bool
	// Leaving reports whether a command is at work that takes the mapping down, which
	// explains a device that is gone. Nil means never.
	Leaving func() bool
	// Growing returns the size in bytes that a command gives the image now, and 0 without one.
	// It is asked when something differs that this explains. Nil means never.
	Growing func() extents.Bytes
	// Stopped reports whether the host device is a mapping itself that was found
	// different. Nil means that nobody knows.
	Stopped func() bool
	// Sysfs is where the devices below are looked at. Empty means that they are not.
	Sysfs string
	// Hosts shares what is read of host devices with other Readers. Nil shares nothing.
	Hosts *Hosts

	claim *swap.Probe                        // nil until a sealed image is asked about
	bases map[dmtable.Device]dmtable.Sectors // the devices that the rows lie on; nil until they are looked at
}

// thawPatience is how long a file system may take to say that it takes changes.
const thawPatience = time.Second

// Close gives back what the Reader keeps for its next reading. The image stays open.
func (r *Reader) Close() error {
	if r.claim == nil {
		return nil
	}
	return r.claim.Close()
}

// Quick reads device-mapper first, and the image only while the host device runs: a
// reader of a suspended file system may wait for its resume.
func (r *Reader) Quick(_ context.Context, fresh bool) guard.Observed {
	var o guard.Observed
	o.Own = guard.Read(r.own())
	if o.Own.Value.Gone && r.Leaving != nil && r.Leaving() {
		return guard.Observed{}
	}
	o.Base = guard.Read(r.host(fresh))
	o.Base.Value.Stopped = r.Stopped != nil && r.Stopped()
	lost := r.below(&o, fresh)
	if o.Base.Value.Suspended || o.Base.Value.Stopped || lost {
		return o
	}
	o.Stamp, o.Identity = r.identity()
	kinds, err := r.inForce()
	if r.Leases && err == nil && !slices.Contains(kinds, pin.Swap) {
		o.Openers = guard.Read(OthersOpen(r.Image), nil)
	}
	if err == nil && slices.Contains(kinds, pin.Swap) {
		o.Claim = guard.Read(r.area())
	}
	if r.Growing != nil && r.mayGrow(o, kinds) {
		o.Growing = r.Growing()
	}
	pins := r.pins(kinds, o.Openers)
	if err == nil && slices.Contains(kinds, pin.F2FS) {
		pins.Tries, pins.Limit, err = r.Image.PinTries(r.Record.Image.Device())
		o.Stamp.Tries = pins.Tries
	}
	o.Pins = guard.Read(pins, err)
	return o
}

// mayGrow reports whether something is as it is while the image is made longer.
func (r *Reader) mayGrow(o guard.Observed, kinds []pin.Kind) bool {
	return o.Identity.Value.Size > r.Record.Image.Size || o.Openers.Value == guard.Writers ||
		slices.Contains(r.Record.PinKinds(), pin.Immutable) && !slices.Contains(kinds, pin.Immutable)
}

// Full adds the layout and the mapping's own table.
func (r *Reader) Full(_ context.Context, o guard.Observed) guard.Observed {
	if !o.Identity.Done {
		return o
	}
	if !o.Own.Value.Gone {
		table, err := r.Mapper.TableLike(dm.ByUUID(r.Record.UUID), r.Record.Table)
		if errors.Is(err, dm.ErrNotFound) { // gone since Quick: the next check judges it
			return o
		}
		o.OwnTable = guard.Read(table, err)
	}
	layout, err := extents.ReadLike(r.Image.File(), r.Record.Layout)
	o.Layout = guard.Read(layout, err)
	// It may have begun since Quick.
	if r.Growing != nil && o.Growing == 0 && (layout.Size > r.Record.Image.Size || o.OwnTable.Done && !o.OwnTable.Value.Equal(r.Record.Table)) {
		o.Growing = r.Growing()
	}
	o.Unfit = guard.Read(r.Image.Unfit())
	return o
}

func (r *Reader) own() (guard.OwnState, error) {
	info, err := r.Mapper.Info(dm.ByUUID(r.Record.UUID))
	if errors.Is(err, dm.ErrNotFound) {
		return guard.OwnState{Gone: true}, nil
	}
	return guard.OwnState{Suspended: info.Suspended, Waiting: info.InactiveTable}, err
}

// host reads the host device, or takes what another mapping's check has just read.
func (r *Reader) host(fresh bool) (guard.Base, error) {
	if r.Hosts == nil || fresh {
		return r.base()
	}
	return r.Hosts.read(r.Record.Base.Device, r.base)
}

func (r *Reader) base() (guard.Base, error) {
	info, table, err := r.Mapper.State(dm.ByDevice(r.Record.Base.Device))
	if err != nil {
		return guard.Base{}, fmt.Errorf("the host device %s: %w", r.Record.Base.Device, err)
	}
	return guard.Base{Device: info.Device, UUID: info.UUID, Table: table.String(),
		Suspended: info.Suspended, Waiting: info.InactiveTable}, nil
}

// below looks at the devices that the rows lie on. It reports whether one is lost: the
// file system on it has nothing to say any more.
func (r *Reader) below(o *guard.Observed, fresh bool) (lost bool) {
	if r.Sysfs == "" {
		return false
	}
	if r.bases == nil {
		r.bases = needs(r.Record.Table)
	}
	found := map[dmtable.Device]guard.Below{}
	for device, need := range r.bases {
		again := func() (guard.Below, error) { return Below(r.Sysfs, r.Mapper, r.Record, device) }
		b, err := r.Hosts.below(device, fresh, again)
		if errors.Is(err, fs.ErrNotExist) {
			return false // without sysfs nothing is known
		}
		if err != nil {
			o.Below = guard.Read(found, err)
			return false
		}
		found[device] = b
		lost = lost || b.Lost != "" || b.Size < need
	}
	o.Below = guard.Read(found, nil)
	return lost
}

// Below reads what is known of a device that the rows of a mapping lie on. Without
// sysfs nothing is, which wraps fs.ErrNotExist.
func Below(sysfs string, src blockdev.TableSource, m record.Record, device dmtable.Device) (guard.Below, error) {
	h, err := blockdev.ReadHealth(sysfs, src, device)
	return guard.Below{Device: blockdev.Named(device, cmp.Or(h.Name, m.NameBelow(device))),
		Size: h.Size, Lost: h.Lost, Ailing: h.Ailing, ReadOnly: h.ReadOnly}, err
}

func (r *Reader) identity() (guard.Stamp, guard.Reading[guard.Identity]) {
	st, err := r.Image.Status()
	return guard.Stamp{Changed: st.Changed, Modified: st.Modified, Blocks: st.Blocks, Attributes: st.Attributes},
		guard.Read(guard.Identity{FileID: st.FileID, Size: st.Size, Links: st.Links}, err)
}

// inForce lists what pins the image, the kernel's swap claim included. Nothing of it
// waits for a frozen file system, or a check would, and with it the guard's end.
func (r *Reader) inForce() ([]pin.Kind, error) {
	kinds, err := pin.InForce(r.Image.File(), r.Record.Image.Filesystem)
	if err == nil && r.Record.Sealed {
		kinds, err = r.withClaim(kinds)
	}
	if err != nil || r.Record.Gate != guard.GateBPF {
		return kinds, err
	}
	gated, err := gate.InForce(r.Record.Image.FileID, r.Record.Device)
	if gated {
		kinds = append(kinds, pin.BPF)
	}
	return kinds, err
}

// withClaim adds the kernel's claim to what pins the image.
func (r *Reader) withClaim(kinds []pin.Kind) ([]pin.Kind, error) {
	if r.claim == nil {
		r.claim = swap.NewProbe(r.Image.File())
		r.claim.Awake = func() error { return frozen.Ask(context.Background(), int(r.Image.File().Fd()), thawPatience) }
	}
	active, err := r.claim.Active()
	if active {
		kinds = append(kinds, pin.Swap)
	}
	return kinds, err
}

// area reads how much of the image the kernel uses as swap space.
func (r *Reader) area() (guard.Claim, error) {
	area, err := swap.Area(r.Image.File())
	return guard.Claim{Size: extents.Bytes(area.Size), Page: extents.Bytes(os.Getpagesize())}, err
}

// pins computes the grade.
func (r *Reader) pins(kinds []pin.Kind, openers guard.Reading[guard.Openers]) guard.Pins {
	grade := pin.GradeOf(pin.Evidence{
		Filesystem: r.Record.Image.Filesystem, Reflink: r.Record.Image.Reflink,
		InForce: kinds, Proof: proof(r.Record.Proof, openers),
	})
	return guard.Pins{InForce: kinds, Grade: grade}
}

// proof reports whether nobody can write to an image that is immutable now. A lease
// that is granted now proves it again, in the order in which map does: the flag was read
// before. Somebody who has the image open for writing voids what was proved when it
// was pinned: the flag has been off meanwhile. What was recorded counts where leases
// tell nothing.
func proof(recorded bool, openers guard.Reading[guard.Openers]) bool {
	if !openers.Done || openers.Err != nil || openers.Value == guard.Untold {
		return recorded
	}
	return openers.Value != guard.Writers
}

// OthersOpen asks by leases who else has the image open (F_SETLEASE; the kernel
// counts open descriptions, so ours must be one). It holds the lease for
// microseconds; an open that falls into them waits for its end.
func OthersOpen(img *image.Image) guard.Openers {
	for _, try := range []struct {
		lease  int
		proves guard.Openers
	}{{unix.F_WRLCK, guard.Alone}, {unix.F_RDLCK, guard.Readers}} {
		err := inode.SetLease(img.File(), try.lease)
		if err == nil {
			err = inode.SetLease(img.File(), unix.F_UNLCK)
		}
		switch {
		case err == nil:
			return try.proves
		case !errors.Is(err, unix.EAGAIN):
			return guard.Untold
		}
	}
	return guard.Writers
}
