// Package extents reads where a regular file lies on its file system (FIEMAP)
// and judges whether its blocks can be mapped. It never writes.
package extents

// Bytes counts bytes: a length, or an offset in a file or on a device. It is
// never negative in a valid Layout.
type Bytes int64

// Extent is one FIEMAP row (struct fiemap_extent in linux/fiemap.h).
type Extent struct {
	Logical  Bytes // offset in the file
	Physical Bytes // address as the file system reports it: on ext4, xfs and f2fs an offset on the host device, on btrfs an address in its logical space
	Length   Bytes
	Flags    Flags
}

// Layout is the list of extents of one file at one moment, in order of Logical.
type Layout struct {
	Size    Bytes // size of the file when it was read
	Extents []Extent
}

// end returns the offset in the file after the last byte of e.
func (e Extent) end() Bytes { return e.Logical + e.Length }

// trim returns the part of e that lies in [from, to) of the file.
func (e Extent) trim(from, to Bytes) Extent {
	end := min(e.end(), to)
	if skip := from - e.Logical; skip > 0 {
		e.Logical += skip
		e.Physical += skip
	}
	e.Length = end - e.Logical
	return e
}

// continues reports whether e follows previous in the file and on the disk, and
// the same is true of the data in both. A row marked as the last one has no
// successor, so that a marker in the middle stays visible.
func (e Extent) continues(previous Extent) bool {
	return e.Logical == previous.end() &&
		e.Physical == previous.Physical+previous.Length &&
		e.Flags.judged() == previous.Flags.judged() &&
		previous.Flags&FlagLast == 0
}
