package observe

import (
	"fmt"

	"dmloop/dmtable"
	"dmloop/internal/blockdev"
	"dmloop/internal/dm"
	"dmloop/internal/gate"
	"dmloop/internal/record"
)

// Guarded is what the gate guards of a mapping whose device is there: the image, the device, the
// host device with the rows that hold the image, and what those lie on. Sysfs is /sys
// except in tests.
func Guarded(m Mapper, sysfs string, rec record.Record) (gate.Entry, error) {
	e, err := GuardedImage(rec)
	if err != nil {
		return e, err
	}
	segments, err := rec.Table.Segments()
	if err != nil {
		return e, err
	}
	host, table, err := m.State(dm.ByDevice(rec.Base.Device))
	if err != nil {
		return e, fmt.Errorf("the host device %s: %w", rec.Base.Device, err)
	}
	rows, err := rec.Table.RowsBelow(table)
	if err != nil {
		return e, err
	}
	e.Devices = []gate.Device{
		{Number: rec.Device, Kind: gate.Own, Name: rec.Name, UUID: rec.UUID},
		{Number: rec.Base.Device, Kind: gate.Below, Name: host.Name, UUID: host.UUID, Rows: rows},
	}
	for _, base := range segmentDevices(segments) {
		below, err := guardedBase(m, sysfs, base, segments)
		if err != nil {
			return e, err
		}
		e.Devices = append(e.Devices, below...)
	}
	return e, nil
}

// GuardedImage is what the gate guards before the device is there.
func GuardedImage(rec record.Record) (gate.Entry, error) {
	digits, ok := record.Number(rec.UUID)
	if !ok {
		return gate.Entry{}, fmt.Errorf("%s is not the uuid of a mapping", rec.UUID)
	}
	id, err := gate.ParseUUID(digits)
	return gate.Entry{Mapping: id, Image: rec.Image.FileID}, err
}

func segmentDevices(segments []dmtable.Segment) (devices []dmtable.Device) {
	seen := map[dmtable.Device]bool{}
	for _, s := range segments {
		if !seen[s.Device] {
			seen[s.Device] = true
			devices = append(devices, s.Device)
		}
	}
	return devices
}

// guardedBase is what the gate guards of one device that the rows lie on.
func guardedBase(m Mapper, sysfs string, base dmtable.Device, segments []dmtable.Segment) ([]gate.Device, error) {
	k, err := blockdev.KindOf(sysfs, base)
	if err != nil {
		return nil, err
	}
	below := gate.Device{Number: base, Kind: gate.Below}
	if k.Loop {
		below.Kind |= gate.Loop
	}
	if k.Mapped {
		info, err := m.Info(dm.ByDevice(base))
		if err != nil {
			return nil, fmt.Errorf("the device below %s: %w", base, err)
		}
		below.Name, below.UUID, below.End = info.Name, info.UUID, endOn(base, segments)
	}
	devices := []gate.Device{below}
	if k.Partition != 0 {
		devices = append(devices, gate.Device{Number: k.Disk, Kind: gate.Disk, Partition: k.Partition, Bytes: int64(k.Size) * dmtable.SectorSize})
	}
	return devices, nil
}

// endOn is how far the segments reach on a device.
func endOn(device dmtable.Device, segments []dmtable.Segment) (end dmtable.Sectors) {
	for _, s := range segments {
		if s.Device == device {
			end = max(end, s.End())
		}
	}
	return end
}
