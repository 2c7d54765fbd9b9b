package lifecycle

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/survey"
)

// FileExtents is an open file whose extents can be listed, as the kernel lists
// them: nothing is clipped or merged, nothing judged.
type FileExtents struct {
	Path       string
	Filesystem string
	Device     dmtable.Device // the host device; anonymous on btrfs and the like
	Size       extents.Bytes
	img        *image.Image
}

// Extents opens the file at path to list where it lies. The caller closes it.
func (s *System) Extents(ctx context.Context, path string) (*FileExtents, error) {
	img, err := s.openImage(ctx, path)
	if err != nil {
		return nil, err
	}
	e := &FileExtents{Path: path, img: img}
	facts, err := img.Facts()
	if err != nil {
		return nil, errors.Join(fault.Wrap(path, "", err), img.Close())
	}
	id, err := img.Identity()
	if err != nil {
		return nil, errors.Join(fault.Wrap(path, "", err), img.Close())
	}
	e.Filesystem, e.Device, e.Size = facts.Filesystem, facts.Device, id.Size
	return e, nil
}

// Close closes the file.
func (e *FileExtents) Close() error { return e.img.Close() }

// Each hands the extents to visit, batch by batch; the slice is used again. When it
// fails before the first batch, the file system does not tell.
func (e *FileExtents) Each(visit func(rows []extents.Extent) error) error {
	err := extents.Each(e.img.File(), visit)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		return fault.Refuse(e.Path, []extents.Problem{{Rule: extents.UnsupportedFS,
			Message: "the file system (" + e.Filesystem + ") does not tell where its files lie",
			Remedy:  advice.CopyImage}})
	}
	return fault.Wrap(e.Path, "", err)
}

// Layout reads all extents at once.
func (e *FileExtents) Layout() (extents.Layout, error) {
	l := extents.Layout{Size: e.Size}
	err := e.Each(func(rows []extents.Extent) error {
		l.Extents = append(l.Extents, rows...)
		return nil
	})
	return l, err
}

// OnHost returns a layout of the file with offsets on the host device, which is what
// the kernel's resume_offset speaks of. Only on btrfs they are not the file's own.
func (e *FileExtents) OnHost(l extents.Layout) (extents.Layout, error) {
	return survey.OnHost(e.img, e.Path, e.Filesystem, l)
}
