package btrfs

import (
	"fmt"

	"dmloop/extents"
)

// Translate returns the layout with offsets on the device dev in place of
// btrfs's addresses, rows split where a chunk ends. Rows beyond the end of the
// file are clipped first. It returns *ProfileError when a row lies in a chunk
// that is not a data chunk of the single profile on dev, and another error when
// a row lies in no chunk, as rows without an address do.
func Translate(l extents.Layout, chunks []Chunk, dev Device) (extents.Layout, error) {
	l = l.Clip()
	out := extents.Layout{Size: l.Size, Extents: make([]extents.Extent, 0, len(l.Extents))}
	for _, e := range l.Extents {
		flags := e.Flags &^ extents.FlagLast
		for e.Length > 0 {
			c, ok := find(chunks, e.Physical)
			if !ok {
				return extents.Layout{}, fmt.Errorf("byte %d of the file has the address %d, which is in no chunk", e.Logical, e.Physical)
			}
			if err := usable(c, dev); err != nil {
				err.Extent = e
				return extents.Layout{}, err
			}
			n := min(e.Length, c.end()-e.Physical)
			out.Extents = append(out.Extents, extents.Extent{
				Logical: e.Logical, Physical: c.Stripes[0].Offset + e.Physical - c.Logical, Length: n, Flags: flags,
			})
			e.Logical += n
			e.Physical += n
			e.Length -= n
		}
		if n := len(out.Extents); n > 0 {
			out.Extents[n-1].Flags |= e.Flags & extents.FlagLast
		}
	}
	return out, nil
}

// ProfileError says that an extent lies in a chunk that is on several devices,
// or several times on one.
type ProfileError struct {
	Extent extents.Extent // the rest of the row from where it lies there
	Chunk  Chunk
}

func (e *ProfileError) Error() string {
	if p := e.Chunk.Type.Profile(); p != "single" {
		return fmt.Sprintf("byte %d of the file lies in a chunk of the %s profile", e.Extent.Logical, p)
	}
	return fmt.Sprintf("byte %d of the file lies in a chunk that is not a data chunk on the one device", e.Extent.Logical)
}

func usable(c Chunk, dev Device) *ProfileError {
	if c.Type != Data && c.Type != Data|Metadata || len(c.Stripes) != 1 || c.Stripes[0].Device != dev.ID {
		return &ProfileError{Chunk: c}
	}
	return nil
}
