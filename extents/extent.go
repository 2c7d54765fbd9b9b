// Package extents reads where a regular file lies on its file system (FIEMAP)
// and judges whether it lies still enough to be mapped. It never writes.
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
