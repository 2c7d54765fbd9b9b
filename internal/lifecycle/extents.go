package lifecycle

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
)

// FileExtents is where a file lies, as the kernel lists it: nothing is clipped or
// merged, nothing judged.
type FileExtents struct {
	Path       string
	Filesystem string
	Device     dmtable.Device // the host device; anonymous on btrfs and the like
	Layout     extents.Layout
}

// Extents reads where the file at path lies.
func (s *System) Extents(ctx context.Context, path string) (*FileExtents, error) {
	img, err := s.openImage(ctx, path)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	facts, err := img.Facts()
	if err != nil {
		return nil, fail(path, "", err)
	}
	layout, err := extents.Read(img.File())
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, refuse(path, []extents.Problem{{Rule: extents.UnsupportedFS,
			Message: "the file system (" + facts.Filesystem + ") does not tell where its files lie"}})
	}
	if err != nil {
		return nil, fail(path, "", err)
	}
	return &FileExtents{Path: path, Filesystem: facts.Filesystem, Device: facts.Device, Layout: layout}, nil
}
