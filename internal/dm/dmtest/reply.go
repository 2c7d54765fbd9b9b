package dmtest

import (
	"bytes"
	"encoding/binary"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/dm/wire"
)

// reply writes a header with the fake's version; without data, as the kernel
// answers requests that take none.
func (k *Kernel) reply(buf []byte, h wire.Header, flags uint32) unix.Errno {
	h.Flags = flags
	if h.Encode(buf) != nil {
		return unix.EINVAL
	}
	ne := binary.NativeEndian
	for i, v := range k.version {
		ne.PutUint32(buf[4*i:], v)
	}
	ne.PutUint32(buf[12:], 305)
	return 0
}

// device writes the header that tells a device's state.
func (k *Kernel) device(buf []byte, d *Device, flags uint32) unix.Errno {
	for _, f := range []struct {
		on  bool
		bit uint32
	}{
		{d.Suspended, unix.DM_SUSPEND_FLAG},
		{d.ReadOnly, unix.DM_READONLY_FLAG},
		{d.Active != nil, unix.DM_ACTIVE_PRESENT_FLAG},
		{d.Inactive != nil, unix.DM_INACTIVE_PRESENT_FLAG},
		{d.Deferred, unix.DM_DEFERRED_REMOVE},
	} {
		if f.on {
			flags |= f.bit
		}
	}
	return k.reply(buf, wire.Header{
		TargetCount: uint32(len(d.Active)),
		OpenCount:   int32(d.OpenCount),
		EventNr:     d.EventNr,
		Device:      d.Device,
		Name:        d.Name,
		UUID:        d.UUID,
	}, flags)
}

// data puts the data after the header that device or reply wrote, or sets the
// flag that there is no room.
func putData(buf, data []byte) unix.Errno {
	ne := binary.NativeEndian
	if len(data) > len(buf)-wire.HeaderSize {
		ne.PutUint32(buf[28:], ne.Uint32(buf[28:])|unix.DM_BUFFER_FULL_FLAG)
		return 0
	}
	copy(buf[wire.HeaderSize:], data)
	ne.PutUint32(buf[12:], uint32(wire.HeaderSize+len(data)))
	return 0
}

func (k *Kernel) tableStatus(h wire.Header, buf []byte, d *Device) unix.Errno {
	table := d.Active
	if h.Flags&unix.DM_QUERY_INACTIVE_TABLE_FLAG != 0 {
		table = d.Inactive
	}
	k.device(buf, d, 0)
	binary.NativeEndian.PutUint32(buf[20:], uint32(len(table)))
	var data []byte
	for _, row := range table {
		if h.Flags&unix.DM_STATUS_TABLE_FLAG == 0 {
			row.Args = ""
		}
		data = appendRow(data, row)
	}
	return putData(buf, data)
}

// appendRow writes a row as the kernel prints it: next counts from the first row.
func appendRow(data []byte, row dmtable.Row) []byte {
	at := len(data)
	data = append(data, make([]byte, wire.Align(wire.SpecSize+len(row.Args)+1))...)
	ne := binary.NativeEndian
	ne.PutUint64(data[at:], uint64(row.Start))
	ne.PutUint64(data[at+8:], uint64(row.Length))
	ne.PutUint32(data[at+20:], uint32(len(data)))
	copy(data[at+24:], row.Target)
	copy(data[at+wire.SpecSize:], row.Args)
	return data
}

// parseLoad reads the rows of a load request: next counts from the row itself.
func parseLoad(data []byte, count uint32) (dmtable.Table, bool) {
	var table dmtable.Table
	ne := binary.NativeEndian
	for range count {
		if len(data) <= wire.SpecSize {
			return nil, false
		}
		next := int(ne.Uint32(data[20:]))
		if next <= wire.SpecSize || next > len(data) || next%8 != 0 {
			return nil, false
		}
		target, _, _ := bytes.Cut(data[24:wire.SpecSize], []byte{0})
		args, _, ended := bytes.Cut(data[wire.SpecSize:next], []byte{0})
		if !ended {
			return nil, false
		}
		table = append(table, dmtable.Row{
			Start:  dmtable.Sectors(ne.Uint64(data[0:])),
			Length: dmtable.Sectors(ne.Uint64(data[8:])),
			Target: string(target),
			Args:   string(args),
		})
		data = data[next:]
	}
	return table, true
}

func (k *Kernel) deps(buf []byte, d *Device) unix.Errno {
	k.device(buf, d, 0)
	if d.Active == nil {
		return 0
	}
	devices := bases(d.Active)
	data := make([]byte, 8+8*len(devices))
	binary.NativeEndian.PutUint32(data, uint32(len(devices)))
	for i, dev := range devices {
		binary.NativeEndian.PutUint64(data[8+8*i:], wire.EncodeDevice(dev))
	}
	return putData(buf, data)
}

func (k *Kernel) list(h wire.Header, buf []byte) unix.Errno {
	k.reply(buf, wire.Header{}, 0)
	ne := binary.NativeEndian
	data := make([]byte, 0, 16)
	last := 0
	for _, name := range slices.Sorted(maps.Keys(k.devices)) {
		d := k.devices[name]
		at := len(data)
		if at > 0 {
			ne.PutUint32(data[last+8:], uint32(at-last))
		}
		last = at
		data = ne.AppendUint64(data, wire.EncodeDevice(d.Device))
		data = append(append(data, 0, 0, 0, 0), name...)
		data = append(data, make([]byte, wire.Align(len(data)+1)-len(data))...)
		if k.version[1] < 37 {
			continue
		}
		data = ne.AppendUint32(data, d.EventNr)
		if k.version[1] < 45 || h.Flags&unix.DM_UUID_FLAG == 0 {
			data = ne.AppendUint32(data, 0)
			continue
		}
		if d.UUID == "" {
			data = ne.AppendUint32(data, 2)
			continue
		}
		data = append(ne.AppendUint32(data, 1), d.UUID...)
		data = append(data, make([]byte, wire.Align(len(data)+1)-len(data))...)
	}
	if len(data) == 0 {
		data = data[:16]
	}
	return putData(buf, data)
}
