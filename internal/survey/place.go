package survey

import (
	"errors"
	"fmt"
	"strings"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/record"
	"dmloop/internal/seal"
)

// Locate judges a layout of the file and turns it into the table: the part of the pipeline
// that a sealed image goes through again once the kernel holds it.
func (s Surveyor) Locate(img *image.Image, f File, sealing Sealing, read extents.Layout, o Options) (Place, []extents.Problem, error) {
	limit := o.MaxExtents
	if limit == 0 {
		limit = DefaultMaxExtents
	}
	place := Place{Read: read, Layout: read.Clip().Merge()}
	problems := read.Problems(f.Facts.BlockSize, limit)
	sound := len(problems) == 0
	host, onHost, more, err := s.HostLayout(img, f, sealing.Sealed, place.Layout)
	if err != nil || len(more) > 0 {
		return place, append(problems, more...), err
	}
	conn, connErr := s.Mapper()
	var source blockdev.TableSource
	if connErr == nil {
		source = conn
	}
	stack, problem, err := blockdev.ReadStack(s.Sysfs, source, host)
	if err != nil {
		return place, problems, errors.Join(connErr, err)
	}
	if problem != nil {
		return place, append(problems, *problem), nil
	}
	place.Stack = stack
	larger, err := largerBlocks(f, sealing, stack.LogicalBlock(), o.Window)
	if problems = append(problems, larger...); !sound || err != nil {
		return place, problems, err
	}
	content, problem, err := contentLayout(onHost, sealing)
	if err != nil {
		return place, problems, err
	}
	if problem != nil {
		return place, append(problems, *problem), nil
	}
	from, length, err := wholeBlocks(f, sealing, stack.LogicalBlock(), o.Window)
	if err != nil || length == 0 {
		return place, problems, err
	}
	window, err := content.Window(from, length)
	if err != nil {
		return place, problems, err
	}
	segments, more := stack.Resolve(window, from)
	if problems = append(problems, more...); len(problems) > 0 {
		return place, problems, nil
	}
	if place.Table, err = dmtable.Build(segments); err != nil {
		return place, nil, err
	}
	problems, err = Overlaps(conn, stack.Host, segments, from, o.Own)
	return place, problems, err
}

// contentLayout turns the file's layout into that of what the device shows, and
// proves for a sealed image that the kernel's swap slot is not part of it.
func contentLayout(file extents.Layout, s Sealing) (extents.Layout, *extents.Problem, error) {
	if !s.Sealed {
		return file, nil, nil
	}
	content, err := seal.Content(file, s.Record)
	if err != nil {
		return extents.Layout{}, nil, err
	}
	slots, err := seal.SwapPhysical(file, s.Record)
	var outside *seal.SlotOutsideError
	if errors.As(err, &outside) {
		p := outside.Problem()
		return extents.Layout{}, &p, nil
	}
	if err != nil {
		return extents.Layout{}, nil, err
	}
	return content, nil, seal.Disjoint(content, slots)
}

// largerBlocks is the rule size-unaligned where the devices below write in larger blocks than the
// file system, as when its device came to lie on another disk. For blocks of its own it is judged
// with the file.
func largerBlocks(f File, s Sealing, block extents.Bytes, w Window) ([]extents.Problem, error) {
	if block <= f.Facts.BlockSize {
		return nil, nil
	}
	length, err := w.Of(f.Path, s.Content)
	if err != nil {
		return nil, err
	}
	return f.Facts.Unaligned(block, "the device's block", w.Offset, length), nil
}

// wholeBlocks returns the whole blocks of the window, of the file system and of the devices
// below: all of it, unless the rule size-unaligned is broken, which says so itself.
func wholeBlocks(f File, s Sealing, device extents.Bytes, w Window) (from, length extents.Bytes, err error) {
	length, err = w.Of(f.Path, s.Content)
	if err != nil {
		return 0, 0, err
	}
	block := max(f.Facts.BlockSize, device, dmtable.SectorSize)
	end := (w.Offset + length) / block * block
	from = (w.Offset + block - 1) / block * block
	return from, max(end-from, 0), nil
}

// Overlaps compares segments, the first of which shows the image's byte from, with every
// live device-mapper device, except for those that the host device stands on and those with
// the uuids own. Of mappings it says which bytes.
func Overlaps(conn *mapper.Mapper, host dmtable.Device, segments []dmtable.Segment, from extents.Bytes, own ...string) ([]extents.Problem, error) {
	others, err := conn.Strangers(host, own...)
	if err != nil || len(others) == 0 {
		return nil, err
	}
	var mappings []blockdev.Mapping
	var rest []mapper.Stranger
	for _, o := range others {
		if strings.HasPrefix(o.UUID, record.UUIDPrefix) {
			mappings = append(mappings, o.Mapping)
		} else {
			rest = append(rest, o)
		}
	}
	problems, err := blockdev.Overlaps(segments, from, mappings)
	if err != nil || len(problems) > 0 {
		return problems, err
	}
	shared, err := mapper.Sharing(segments, nil, rest)
	for _, o := range shared {
		problems = append(problems, extents.Problem{Rule: extents.Overlap,
			Message: fmt.Sprintf("the live device-mapper device %s (%s) lies on the image's blocks", o.Name, o.Device),
			Remedy:  advice.RemoveDevice.Of(o.Name)})
	}
	return problems, err
}
