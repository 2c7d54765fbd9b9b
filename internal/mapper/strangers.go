package mapper

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"dmloop/dmtable"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/record"
)

// A Stranger is a live device-mapper device that may lie on an image.
type Stranger struct {
	blockdev.Mapping
	UUID string
}

// Strangers lists all device-mapper devices that have a table, a second one that
// waits to go live among its rows, except for those that the host device stands on and
// those with the uuids own.
func (m *Mapper) Strangers(host dmtable.Device, own ...string) ([]Stranger, error) {
	all, err := m.List()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	below, err := blockdev.Below(m.Sysfs, m.Conn, host)
	if err != nil {
		return nil, err
	}
	var others, outer []Stranger
	for _, d := range all {
		if d.UUID != "" && slices.Contains(own, d.UUID) {
			continue
		}
		info, table, err := m.State(dm.ByDevice(d.Device))
		if err == nil && info.InactiveTable {
			var waiting dmtable.Table
			waiting, err = m.InactiveTable(dm.ByDevice(d.Device))
			table = append(table, waiting...)
		}
		if errors.Is(err, dm.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the table of %s: %w", d.Name, err)
		}
		one := Stranger{blockdev.Mapping{Name: d.Name, Device: d.Device, Table: table}, d.UUID}
		switch {
		case !slices.Contains(below, d.Device):
			others = append(others, one)
		case strings.HasPrefix(d.UUID, record.UUIDPrefix):
			outer = append(outer, one)
		}
	}
	return slices.DeleteFunc(others, func(o Stranger) bool { return carriesAny(o, outer) }), nil
}

// carriesAny reports whether the device is the host of one of these mapped images, on
// which an image inside it stands as well: the rows of both name what is below the host.
func carriesAny(host Stranger, images []Stranger) bool {
	return slices.ContainsFunc(images, func(m Stranger) bool {
		areas, err := m.Table.Segments()
		return err == nil && len(areas) > 0 && host.Covers(areas)
	})
}

// SharingWith returns those of others that lie on areas of the host device, on it or
// on any device below it. Further down than one layer only linear and striped rows
// count: nothing else lies on single blocks there, and LVM's own devices do.
func (m *Mapper) SharingWith(host dmtable.Device, areas []dmtable.Segment, others []Stranger) ([]Stranger, error) {
	direct, deeper, err := blockdev.Footprint(m.Conn, host, onDevice(host, areas))
	if err != nil {
		return nil, err
	}
	return Sharing(append(onDevice(host, areas), direct...), deeper, others)
}

func onDevice(host dmtable.Device, areas []dmtable.Segment) []dmtable.Segment {
	on := slices.Clone(areas)
	for i := range on {
		on[i].Device = host
	}
	return on
}

// Sharing returns those of others that lie on one of the areas near; of the areas far only
// linear and striped rows count.
func Sharing(near, far []dmtable.Segment, others []Stranger) ([]Stranger, error) {
	mappings := make([]blockdev.Mapping, 0, len(others))
	for _, o := range others {
		mappings = append(mappings, o.Mapping)
	}
	found, err := blockdev.Sharing(near, mappings, false)
	if err != nil {
		return nil, err
	}
	more, err := blockdev.Sharing(far, mappings, true)
	if err != nil {
		return nil, err
	}
	shares := func(o Stranger) bool {
		return slices.ContainsFunc(append(found, more...), func(m blockdev.Mapping) bool { return m.Device == o.Device })
	}
	return slices.DeleteFunc(slices.Clone(others), func(o Stranger) bool { return !shares(o) }), nil
}

// LiveError says that a stranger lies on the blocks of subject, who uses it and what to do.
func (m *Mapper) LiveError(subject string, other Stranger) error {
	message := fmt.Sprintf("the live device-mapper device %s (%s) lies on its blocks", other.Name, other.Device)
	if users := m.Users(other.Device); len(users) > 0 { // who need not be: it lies there all the same
		message += ", in use by " + strings.Join(users, ", ")
	}
	remedy := advice.RemoveDevice
	if strings.HasPrefix(other.UUID, record.UUIDPrefix) {
		remedy = advice.UnmapElsewhere
	}
	return &fault.Error{Class: fault.Busy, Subject: subject, Message: message, Remedy: remedy.Of(other.Name)}
}
