package blockdev

import (
	"errors"
	"io/fs"
	"slices"
	"strings"

	"dmloop/dmtable"
	"dmloop/internal/dm"
	"dmloop/internal/record"
)

// Lister is a TableSource that knows all devices; *dm.Conn is one.
type Lister interface {
	TableSource
	// List returns every device-mapper device.
	List() ([]dm.Entry, error)
}

// Above returns the device-mapper devices through which sectors of the device can be
// reached without it: those that stand on it, on a partition of it or on the disk
// that it is a partition of, or that lie over the same sectors of devices below it.
// Those that it stands on itself are left out, and so are mappings of images, whose
// sectors are their image's alone. Sysfs is /sys except in tests.
func Above(sysfs string, src Lister, number dmtable.Device) ([]dm.Entry, error) {
	w := walk{sysfs, src}
	size, err := DeviceSize(sysfs, number)
	if err != nil {
		return nil, err
	}
	ours, err := w.ground(dmtable.Segment{Device: number, Length: size})
	if err != nil {
		return nil, err
	}
	below, err := Below(sysfs, src, number)
	if err != nil {
		return nil, err
	}
	all, err := src.List()
	if err != nil {
		return nil, err
	}
	var above []dm.Entry
	for _, e := range all {
		if e.Device == number || slices.Contains(below, e.Device) || strings.HasPrefix(e.UUID, record.UUIDPrefix) {
			continue
		}
		theirs, err := w.uses(e.Device)
		if errors.Is(err, dm.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile, or without a table so far
		}
		if err != nil {
			return nil, err
		}
		if meet(ours, theirs) {
			above = append(above, e)
		}
	}
	return above, nil
}

// uses returns where the sectors of a device-mapper device lie, and the whole of what
// rows name that are not looked through.
func (w walk) uses(number dmtable.Device) ([]dmtable.Segment, error) {
	_, table, err := w.src.State(dm.ByDevice(number))
	if err != nil {
		return nil, err
	}
	used, err := w.rows(number, table, 0, table.Size())
	if err != nil {
		return nil, err
	}
	for _, row := range table {
		if _, err := row.Span(); err == nil {
			continue
		}
		for _, word := range strings.Fields(row.Args) {
			dev, err := dmtable.ParseDevice(word)
			if err != nil {
				continue
			}
			whole, err := w.ground(dmtable.Segment{Device: dev, Length: dmtable.MaxSectors})
			if errors.Is(err, fs.ErrNotExist) {
				continue // an argument that only looks like a device
			}
			if err != nil {
				return nil, err
			}
			used = append(used, whole...)
		}
	}
	return used, nil
}

// ground follows a stretch of a device down to where it lies: through linear and
// striped tables and to the disk of a partition. A mapping of an image is ground.
func (w walk) ground(seg dmtable.Segment) ([]dmtable.Segment, error) {
	d, err := openFolder(w.sysfs, seg.Device)
	if err != nil {
		return nil, err
	}
	info, table, mapped, err := w.table(d)
	if err != nil {
		return nil, err
	}
	if mapped && !strings.HasPrefix(info.UUID, record.UUIDPrefix) {
		return w.rows(seg.Device, table, seg.Start, min(seg.End(), table.Size()))
	}
	disk, start, err := d.disk()
	if err != nil {
		return nil, err
	}
	seg.Device, seg.Start = disk.number, seg.Start+start
	return []dmtable.Segment{seg}, nil
}

// rows is ground for the sectors from..to of a table.
func (w walk) rows(number dmtable.Device, table dmtable.Table, from, to dmtable.Sectors) ([]dmtable.Segment, error) {
	var found []dmtable.Segment
	for _, row := range table {
		at, end := max(from, row.Start), min(to, row.End())
		if at >= end {
			continue
		}
		span, err := row.Span()
		if err != nil {
			found = append(found, dmtable.Segment{Device: number, Start: at, Length: end - at})
			continue
		}
		areas := span.Areas // of stripes the whole: who uses some of them uses all
		if len(areas) == 1 {
			areas = []dmtable.Segment{span.Piece(at, end-at)}
		}
		for _, area := range areas {
			below, err := w.ground(area)
			if err != nil {
				return nil, err
			}
			found = append(found, below...)
		}
	}
	return found, nil
}

// meet reports whether two lists of stretches have a sector in common.
func meet(a, b []dmtable.Segment) bool {
	for _, x := range a {
		for _, y := range b {
			if x.Device == y.Device && x.Start < y.End() && y.Start < x.End() {
				return true
			}
		}
	}
	return false
}
