package dmtest

import (
	"bytes"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/dm/wire"
	"dmloop/internal/ioctl"
)

// answer carries the request out and writes the reply, as the functions of
// drivers/md/dm-ioctl.c do.
func (k *Kernel) answer(req ioctl.Request, h wire.Header, buf []byte) unix.Errno {
	switch req.Number {
	case unix.DM_VERSION:
		return k.reply(buf, h, 0)
	case unix.DM_LIST_DEVICES:
		return k.list(h, buf)
	case unix.DM_DEV_CREATE:
		return k.create(h, buf)
	}
	d := k.find(h)
	if d == nil {
		return unix.ENXIO
	}
	switch req.Number {
	case unix.DM_DEV_STATUS:
		return k.device(buf, d, 0)
	case unix.DM_DEV_SUSPEND:
		return k.suspend(h, buf, d)
	case unix.DM_DEV_REMOVE:
		return k.remove(h, buf, d)
	case unix.DM_DEV_RENAME:
		return k.rename(h, buf, d)
	case unix.DM_TABLE_LOAD:
		return k.load(h, buf, d)
	case unix.DM_TABLE_CLEAR:
		d.Inactive = nil
		return k.device(buf, d, 0)
	case unix.DM_TABLE_DEPS:
		return k.deps(buf, d)
	case unix.DM_TABLE_STATUS:
		return k.tableStatus(h, buf, d)
	}
	return unix.ENOTTY
}

func (k *Kernel) create(h wire.Header, buf []byte) unix.Errno {
	if h.Name == "" || strings.Contains(h.Name, "/") || h.Name == "." || h.Name == ".." || h.Name == "control" {
		return unix.EINVAL
	}
	for _, d := range k.devices {
		if d.Name == h.Name || h.UUID != "" && d.UUID == h.UUID {
			return unix.EBUSY
		}
	}
	d := &Device{Name: h.Name, UUID: h.UUID, Device: dmtable.Device{Major: Major, Minor: k.minor}}
	k.minor++
	k.devices[d.Name] = d
	return k.device(buf, d, 0)
}

func (k *Kernel) load(h wire.Header, buf []byte, d *Device) unix.Errno {
	table, ok := parseLoad(buf[h.DataStart:], h.TargetCount)
	if !ok || table.Validate(dmtable.Limits{}) != nil {
		return unix.EINVAL
	}
	for _, dev := range bases(table) {
		if dev == d.Device {
			return unix.EINVAL
		}
	}
	d.Inactive = table
	d.inactiveReadOnly = h.Flags&unix.DM_READONLY_FLAG != 0
	return k.device(buf, d, 0)
}

func (k *Kernel) suspend(h wire.Header, buf []byte, d *Device) unix.Errno {
	if h.Flags&unix.DM_SUSPEND_FLAG != 0 {
		d.Suspended = true
		return k.device(buf, d, 0)
	}
	if d.Inactive == nil && !d.Suspended {
		return k.device(buf, d, 0)
	}
	if d.Inactive != nil {
		d.Active, d.ReadOnly, d.Inactive = d.Inactive, d.inactiveReadOnly, nil
	}
	if d.Active == nil {
		return unix.EINVAL
	}
	d.Suspended = false
	return k.device(buf, d, unix.DM_UEVENT_GENERATED_FLAG)
}

func (k *Kernel) remove(h wire.Header, buf []byte, d *Device) unix.Errno {
	deferred := h.Flags&unix.DM_DEFERRED_REMOVE != 0
	if d.OpenCount > 0 {
		if !deferred {
			return unix.EBUSY
		}
		d.Deferred = true
		return k.reply(buf, h, unix.DM_DEFERRED_REMOVE)
	}
	delete(k.devices, d.Name)
	return k.reply(buf, h, unix.DM_UEVENT_GENERATED_FLAG)
}

func (k *Kernel) rename(h wire.Header, buf []byte, d *Device) unix.Errno {
	data := buf[h.DataStart:]
	end := bytes.IndexByte(data, 0)
	if end <= 0 || end > dmtable.MaxName || bytes.IndexByte(data[:end], '/') >= 0 {
		return unix.EINVAL
	}
	name := string(data[:end])
	if k.devices[name] != nil {
		return unix.EBUSY
	}
	delete(k.devices, d.Name)
	d.Name = name
	d.EventNr++
	k.devices[name] = d
	return k.device(buf, d, unix.DM_UEVENT_GENERATED_FLAG)
}

// bases returns the devices that linear and striped rows name, each once.
func bases(t dmtable.Table) []dmtable.Device {
	var devices []dmtable.Device
	for _, row := range t {
		var areas []dmtable.Segment
		if seg, err := row.Segment(); err == nil {
			areas = []dmtable.Segment{seg}
		} else if s, err := row.Stripes(); err == nil {
			areas = s.Areas
		}
		for _, area := range areas {
			if !slices.Contains(devices, area.Device) {
				devices = append(devices, area.Device)
			}
		}
	}
	return devices
}
