package lifecycle

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/btrfs"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/record"
)

// notLive refuses an image on whose blocks a device-mapper device lies. It asks the
// kernel and no record: the image may have been mapped with another state folder, in a
// container or a chroot, or by hand. Whoever lifts a pin or writes to an image asks
// this first. What the host file system itself stands on is no stranger, nor are the
// devices with the uuids own. Where device-mapper cannot be asked that is an error; a
// kernel without it has no such devices.
func (s *System) notLive(img *image.Image, filesystem string, own ...string) error {
	conn, err := s.mapper()
	if fault.ClassOf(err) == fault.KernelLacks && !s.hasMapped() {
		return nil
	}
	if err != nil {
		return fault.Wrap(img.Path(), "whether a device lies on its blocks cannot be told", err)
	}
	host, err := s.hostOf(img, filesystem)
	if err != nil || host.Major == 0 {
		return fault.Wrap(img.Path(), "", err) // without a block device there are no blocks to share
	}
	others, err := s.othersThan(conn, host, own...)
	if err != nil || len(others) == 0 {
		return fault.Wrap(img.Path(), "", err)
	}
	areas, err := s.areas(img, filesystem)
	if err != nil {
		return fault.Wrap(img.Path(), "", err)
	}
	sharing, err := sharingWith(conn, host, areas, others)
	if err != nil || len(sharing) == 0 {
		return fault.Wrap(img.Path(), "", err)
	}
	return s.liveError(img.Path(), sharing[0])
}

// NotLive refuses an image on whose blocks a live device-mapper device lies. It is for what
// writes to an image without the other use cases. Without root, where device-mapper
// cannot be asked, the image's pins refuse the caller.
func (s *System) NotLive(img *image.Image) error {
	facts, err := img.Facts()
	if err != nil {
		return fault.Wrap(img.Path(), "", err)
	}
	err = s.notLive(img, facts.Filesystem)
	if fault.ClassOf(err) == fault.NotPermitted && unix.Geteuid() != 0 {
		s.log.Debug("not checked without root: whether a device lies on the image's blocks", "image", img.Path())
		return nil
	}
	return err
}

// hasMapped reports whether the kernel shows a device-mapper device.
func (s *System) hasMapped() bool {
	found, err := filepath.Glob(filepath.Join(s.sysfs, "block/dm-*"))
	return err != nil || len(found) > 0
}

// liveError says which device it is, who uses it and what to do.
func (s *System) liveError(subject string, m stranger) error {
	message := fmt.Sprintf("the live device-mapper device %s (%s) lies on its blocks", m.Name, m.Device)
	if users := s.users(m.Device); len(users) > 0 { // who need not be: it lies there all the same
		message += ", in use by " + strings.Join(users, ", ")
	}
	remedy := advice.RemoveDevice
	if strings.HasPrefix(m.uuid, record.UUIDPrefix) {
		remedy = advice.UnmapElsewhere
	}
	return &fault.Error{Class: fault.Busy, Subject: subject, Message: message, Remedy: remedy.Of(m.Name)}
}

// hostOf returns the device that the image's file system is on, major 0 for one that is on
// no block device.
func (s *System) hostOf(img *image.Image, filesystem string) (dmtable.Device, error) {
	if filesystem == "btrfs" {
		fs, err := btrfs.ReadFilesystem(img.File())
		if err != nil {
			return dmtable.Device{}, err
		}
		return btrfsDevice(s.sysfs, fs)
	}
	id, err := img.Identity()
	return dmtable.Device{Major: id.Major, Minor: id.Minor}, err
}

// areas returns the sectors of the host device that hold the file, what is allocated
// beyond its end included.
func (s *System) areas(img *image.Image, filesystem string) ([]dmtable.Segment, error) {
	file, err := extents.Read(img.File())
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		return nil, nil // nothing was ever mapped or pinned there
	}
	if err != nil {
		return nil, err
	}
	const nowhere = extents.FlagUnknown | extents.FlagDelalloc | extents.FlagInline
	rows := slices.DeleteFunc(file.Extents, func(e extents.Extent) bool { return e.Flags&nowhere != 0 || e.Length <= 0 })
	if filesystem == "btrfs" {
		if rows, err = btrfsRows(img, rows); err != nil {
			return nil, err
		}
	}
	areas := make([]dmtable.Segment, 0, len(rows))
	for _, e := range rows {
		first, end := e.Physical/dmtable.SectorSize, (e.Physical+e.Length+dmtable.SectorSize-1)/dmtable.SectorSize
		areas = append(areas, dmtable.Segment{Start: dmtable.Sectors(first), Length: dmtable.Sectors(end - first)})
	}
	return areas, nil
}

// btrfsRows turns the addresses of rows into those on the device. Rows in chunks
// that are not on it alone cannot have been mapped.
func btrfsRows(img *image.Image, rows []extents.Extent) ([]extents.Extent, error) {
	fs, chunks, err := readBtrfs(img, img.Path())
	if err != nil {
		return nil, err
	}
	var onHost []extents.Extent
	for _, e := range rows {
		one, err := btrfs.Translate(extents.Layout{Size: e.Logical + e.Length, Extents: []extents.Extent{e}}, chunks, fs.Device)
		if err != nil && !errors.As(err, new(*btrfs.ProfileError)) {
			return nil, err
		}
		onHost = append(onHost, one.Extents...)
	}
	return onHost, nil
}

// stranger is a live device-mapper device that may lie on an image.
type stranger struct {
	blockdev.Mapping
	uuid string
}

// othersThan lists all device-mapper devices that have a table, a second one that
// waits to go live among its rows, except for those that the host device stands on and
// those with the uuids own.
func (s *System) othersThan(conn *dm.Conn, host dmtable.Device, own ...string) ([]stranger, error) {
	all, err := conn.List()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	below, err := blockdev.Below(s.sysfs, conn, host)
	if err != nil {
		return nil, err
	}
	var others, outer []stranger
	for _, d := range all {
		if d.UUID != "" && slices.Contains(own, d.UUID) {
			continue
		}
		info, table, err := conn.State(dm.ByDevice(d.Device))
		if err == nil && info.InactiveTable {
			var waiting dmtable.Table
			waiting, err = conn.InactiveTable(dm.ByDevice(d.Device))
			table = append(table, waiting...)
		}
		if errors.Is(err, dm.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the table of %s: %w", d.Name, err)
		}
		one := stranger{blockdev.Mapping{Name: d.Name, Device: d.Device, Table: table}, d.UUID}
		switch {
		case !slices.Contains(below, d.Device):
			others = append(others, one)
		case strings.HasPrefix(d.UUID, record.UUIDPrefix):
			outer = append(outer, one)
		}
	}
	return slices.DeleteFunc(others, func(o stranger) bool { return carriesAny(o, outer) }), nil
}

// carriesAny reports whether the device is the host of one of these mapped images, on
// which an image inside it stands as well: the rows of both name what is below the host.
func carriesAny(host stranger, images []stranger) bool {
	return slices.ContainsFunc(images, func(m stranger) bool {
		areas, err := m.Table.Segments()
		return err == nil && len(areas) > 0 && host.Covers(areas)
	})
}

// sharingWith returns those of others that lie on areas of the host device, on it or
// on any device below it. Further down than one layer only linear and striped rows
// count: nothing else lies on single blocks there, and LVM's own devices do.
func sharingWith(conn *dm.Conn, host dmtable.Device, areas []dmtable.Segment, others []stranger) ([]stranger, error) {
	direct, deeper, err := blockdev.Footprint(conn, host, onDevice(host, areas))
	if err != nil {
		return nil, err
	}
	return sharing(append(onDevice(host, areas), direct...), deeper, others)
}

func onDevice(host dmtable.Device, areas []dmtable.Segment) []dmtable.Segment {
	on := slices.Clone(areas)
	for i := range on {
		on[i].Device = host
	}
	return on
}

func sharing(near, far []dmtable.Segment, others []stranger) ([]stranger, error) {
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
	shares := func(o stranger) bool {
		return slices.ContainsFunc(append(found, more...), func(m blockdev.Mapping) bool { return m.Device == o.Device })
	}
	return slices.DeleteFunc(slices.Clone(others), func(o stranger) bool { return !shares(o) }), nil
}
