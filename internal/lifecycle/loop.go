package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/blockdev"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/seal"
	"dmloop/internal/survey"
	"dmloop/internal/udev"
)

// FallbackPrefix begins the device-mapper uuid of a device that stands on a loop
// device, since its image could not be mapped.
const FallbackPrefix = "DMLOOPFALLBACK-"

// MapLoop is what a boot falls back to when an image cannot be mapped: a device of
// the same name and content, over a loop device. It needs nothing of the image's
// blocks to stay where they are. Pins that dmloop set are cleared, since the loop
// driver has to write to the file.
func (s *System) MapLoop(ctx context.Context, path string, o MapOptions) (device string, err error) {
	name, err := mangled(path, o.Name)
	if err != nil {
		return "", err
	}
	uuid, err := newUUID(name, o.UUID)
	if err != nil {
		return "", err
	}
	found, err := find(path)
	if err != nil {
		return "", err
	}
	defer found.Close()
	if !o.ReadOnly {
		if err := s.unpin(ctx, found); err != nil {
			return "", err
		}
	}
	img, err := s.open(ctx, found)
	if err != nil {
		return "", err
	}
	defer img.Close()
	content, err := loopContent(img, o.Options)
	if err != nil {
		return "", fault.Wrap(path, "", err)
	}
	file := img.File()
	if !o.ReadOnly {
		if file, err = reopen(img); err != nil {
			return "", err
		}
		defer file.Close()
	}
	return s.overLoop(file, name, FallbackPrefix+uuid[len("DMLOOP-"):], content, o.ReadOnly)
}

// loopContent returns which bytes of the file the device shows: of a sealed image
// the moved pages stand where they were.
func loopContent(img *image.Image, o survey.Options) (extents.Layout, error) {
	st, err := seal.Inspect(img.File(), o.AsSealed)
	if err != nil {
		return extents.Layout{}, err
	}
	id, err := img.Identity()
	if err != nil {
		return extents.Layout{}, err
	}
	content := extents.Layout{Size: id.Size, Extents: []extents.Extent{{Length: id.Size}}}
	switch {
	case st.Kind == seal.Sealed:
		if content, err = seal.Content(content, st.Record); err != nil {
			return extents.Layout{}, err
		}
	case st.Kind != seal.Plain:
		return extents.Layout{}, errors.New("a seal or unseal of the image was interrupted: dmloop seal finishes it")
	}
	length, err := o.Window.Of(img.Path(), content.Size)
	if err != nil {
		return extents.Layout{}, err
	}
	return content.Window(o.Window.Offset, length)
}

// overLoop attaches the file to a loop device and makes the device above it.
func (s *System) overLoop(file *os.File, name, uuid string, content extents.Layout, readOnly bool) (string, error) {
	conn, err := s.mapper()
	if err != nil {
		return "", err
	}
	loop, err := blockdev.AttachLoop(file, readOnly)
	if err != nil {
		return "", err
	}
	segments := make([]dmtable.Segment, 0, len(content.Extents))
	for _, e := range content.Extents {
		if e.Physical%dmtable.SectorSize != 0 || e.Length%dmtable.SectorSize != 0 {
			err = fmt.Errorf("bytes %d-%d are not whole sectors", e.Logical, e.Logical+e.Length-1)
		}
		segments = append(segments, dmtable.Segment{Device: loop.Number,
			Start: dmtable.Sectors(e.Physical / dmtable.SectorSize), Length: dmtable.Sectors(e.Length / dmtable.SectorSize)})
	}
	var table dmtable.Table
	if err == nil {
		table, err = dmtable.Build(segments)
	}
	if err == nil {
		err = conn.Make(name, uuid, table, readOnly, udev.LowPriority)
	}
	if err != nil {
		return "", errors.Join(err, loop.Detach())
	}
	return "/dev/mapper/" + name, loop.Close()
}
