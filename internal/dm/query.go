package dm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/dm/wire"
)

const (
	firstBuffer = 16 << 10 // enough for about 250 linear rows or 100 devices
	linearRow   = wire.SpecSize + 32
)

// State returns the device's state and its active table, both from one request,
// so they belong together. A device without a table gives an empty one.
func (c *Conn) State(ref Ref) (Info, dmtable.Table, error) {
	return c.rows(call{req: reqTable, ref: ref, flags: unix.DM_STATUS_TABLE_FLAG})
}

// Table returns the device's active table, empty when it has none.
func (c *Conn) Table(ref Ref) (dmtable.Table, error) {
	_, table, err := c.State(ref)
	return table, err
}

// TableLike is Table for a device that is expected to have the table like: it asks with
// enough room for that, and returns like itself when the rows are the same.
func (c *Conn) TableLike(ref Ref, like dmtable.Table) (dmtable.Table, error) {
	_, table, err := c.rows(call{req: reqTable, ref: ref, flags: unix.DM_STATUS_TABLE_FLAG, like: like})
	return table, err
}

// InactiveTable returns the table that waits for Resume, empty when there is
// none.
func (c *Conn) InactiveTable(ref Ref) (dmtable.Table, error) {
	_, table, err := c.rows(call{req: reqTable, ref: ref, flags: unix.DM_STATUS_TABLE_FLAG | unix.DM_QUERY_INACTIVE_TABLE_FLAG})
	return table, err
}

// Status returns the active table's rows with each target's status in place of
// its arguments. It does not flush the device.
func (c *Conn) Status(ref Ref) (dmtable.Table, error) {
	_, table, err := c.rows(call{req: reqTable, ref: ref, flags: unix.DM_NOFLUSH_FLAG})
	return table, err
}

func (c *Conn) rows(call call) (Info, dmtable.Table, error) {
	var table dmtable.Table
	h, err := c.read(call, func(h wire.Header, data []byte) (err error) {
		switch {
		case len(call.like) > 0 && wire.SameTable(data, h.TargetCount, call.like):
			table = call.like
		case h.TargetCount > 0:
			table, err = wire.ParseTable(data, h.TargetCount)
		}
		return err
	})
	if err != nil {
		return Info{}, nil, err
	}
	return newInfo(h), table, nil
}

// Deps returns the devices that the active table names, each once.
func (c *Conn) Deps(ref Ref) ([]dmtable.Device, error) {
	var deps []dmtable.Device
	_, err := c.read(call{req: reqDeps, ref: ref}, func(h wire.Header, data []byte) (err error) {
		if len(data) > 0 && h.Flags&unix.DM_ACTIVE_PRESENT_FLAG != 0 {
			deps, err = wire.ParseDeps(data)
		}
		return err
	})
	return deps, err
}

// Entry is one device of List.
type Entry struct {
	Name    string
	UUID    string // empty when it has none
	Device  dmtable.Device
	EventNr uint32
}

// List returns all device-mapper devices of the kernel, those of other programs
// too, sorted by name as the kernel sorts them. Kernels before 5.13 do not list
// uuids; there they are asked for one by one, and a device that goes away
// meanwhile is left out.
func (c *Conn) List() ([]Entry, error) {
	var devices []wire.Device
	_, err := c.read(call{req: reqList, flags: unix.DM_UUID_FLAG}, func(h wire.Header, data []byte) (err error) {
		if len(data) > 0 {
			devices, err = wire.ParseList(data, h.Version[1])
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, 0, len(devices))
	for _, d := range devices {
		if !d.HasUUID {
			info, err := c.Info(ByDevice(d.Device))
			if errors.Is(err, ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			d.UUID = info.UUID
		}
		entries = append(entries, Entry{Name: d.Name, UUID: d.UUID, Device: d.Device, EventNr: d.EventNr})
	}
	return entries, nil
}

// read makes a request that returns data and gives it to parse, which must not
// keep it. It takes a larger buffer as long as the kernel says that it is full. A
// table's rows are counted in the first reply, so linear tables of any size take
// two calls at most.
func (c *Conn) read(call call, parse func(h wire.Header, data []byte) error) (wire.Header, error) {
	fail := func(err error) (wire.Header, error) {
		return wire.Header{}, &Error{Op: call.req.Name, Name: call.ref.String(), Err: err}
	}
	size := firstBuffer
	if n := len(call.like); n > 0 {
		size = min(max(size, wire.HeaderSize+wire.TableSize(call.like)+linearRow), wire.MaxBuffer)
	}
	for {
		buf := c.buffer(size)
		defer c.release(buf)
		h, err := c.do(call, buf)
		if err != nil {
			return h, err
		}
		if h.Flags&unix.DM_BUFFER_FULL_FLAG == 0 {
			data, err := h.Data(buf)
			if err == nil {
				err = parse(h, data)
			}
			if err != nil {
				return fail(err)
			}
			return h, nil
		}
		if size == wire.MaxBuffer {
			return fail(fmt.Errorf("reply needs more than %d bytes", size))
		}
		size = min(max(2*size, wire.HeaderSize+(int(h.TargetCount)+1)*linearRow), wire.MaxBuffer)
	}
}
