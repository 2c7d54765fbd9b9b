package survey

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/blockdev"
	"dmloop/internal/btrfs"
	"dmloop/internal/fault"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
)

// NotLive refuses an image on whose blocks a device-mapper device lies. It asks the
// kernel and no record: the image may have been mapped with another state directory, in a
// container or a chroot, or by hand. Whoever lifts a pin or writes to an image asks
// this first. What the host file system itself stands on is not a stranger, nor are the
// devices with the uuids own. Where device-mapper cannot be asked that is an error; a
// kernel without it has no such devices.
func (s Surveyor) NotLive(img *image.Image, filesystem string, own ...string) error {
	conn, err := s.Mapper()
	if fault.ClassOf(err) == fault.KernelLacks && !blockdev.AnyMapped(s.Sysfs) {
		return nil
	}
	if err != nil {
		return fault.Wrap(img.Path(), "cannot tell whether a device lies on its blocks", err)
	}
	host, err := s.hostOf(img, filesystem)
	if err != nil || host.Major == 0 {
		return fault.Wrap(img.Path(), "", err) // without a block device there are no blocks to share
	}
	others, err := conn.Strangers(host, own...)
	if err != nil || len(others) == 0 {
		return fault.Wrap(img.Path(), "", err)
	}
	areas, err := s.areas(img, filesystem)
	if err != nil {
		return fault.Wrap(img.Path(), "", err)
	}
	sharing, err := conn.SharingWith(host, areas, others)
	if err != nil || len(sharing) == 0 {
		return fault.Wrap(img.Path(), "", err)
	}
	return conn.LiveError(img.Path(), sharing[0])
}

// hostOf returns the device that the image's file system is on, major 0 for one that is on
// no block device.
func (s Surveyor) hostOf(img *image.Image, filesystem string) (dmtable.Device, error) {
	if fstype.Of(filesystem).OwnAddresses {
		return ownDevice(s.Sysfs, img.File())
	}
	id, err := img.Identity()
	return id.Device(), err
}

// areas returns the sectors of the host device that hold the file, what is allocated
// beyond its end included.
func (s Surveyor) areas(img *image.Image, filesystem string) ([]dmtable.Segment, error) {
	file, err := extents.Read(img.File())
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		return nil, nil // nothing was ever mapped or pinned there
	}
	if err != nil {
		return nil, err
	}
	const nowhere = extents.FlagUnknown | extents.FlagDelalloc | extents.FlagInline
	rows := slices.DeleteFunc(file.Extents, func(e extents.Extent) bool { return e.Flags&nowhere != 0 || e.Length <= 0 })
	if fstype.Of(filesystem).OwnAddresses {
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
