package lifecycle

import (
	"context"

	"dmloop/internal/image"
	"dmloop/internal/manifest"
	"dmloop/internal/observe"
)

// openRecorded opens the image of a record, wherever it is by now. It returns
// observe.ErrImageGone when the file system says that the inode is no more.
func (s *System) openRecorded(ctx context.Context, want manifest.Image) (*image.Image, error) {
	return observe.Open(want, func(path string) (*image.Image, error) { return s.openImage(ctx, path) })
}
