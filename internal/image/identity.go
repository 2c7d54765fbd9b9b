package image

import (
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

// Identity is which file an image is, and how long. It is comparable.
type Identity struct {
	guard.FileID
	Size extents.Bytes `json:"size"`
}

// Identity reads who the image is now.
func (i *Image) Identity() (Identity, error) {
	st, err := i.statx(unix.STATX_BASIC_STATS | unix.STATX_BTIME)
	if err != nil {
		return Identity{}, err
	}
	return i.identity(st)
}

func (i *Image) identity(st unix.Statx_t) (Identity, error) {
	id := Identity{FileID: guard.FileID{Major: st.Dev_major, Minor: st.Dev_minor, Inode: st.Ino}, Size: extents.Bytes(st.Size)}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.Birth = nanoseconds(st.Btime)
	}
	generation, err := inode.Generation(i.file)
	if err != nil && !inode.NotSupported(err) {
		return Identity{}, i.wrap(err)
	}
	id.Generation = generation
	return id, nil
}

// Status is what one statx(2) tells of an open image besides who it is.
type Status struct {
	Identity
	Links             uint64
	Changed, Modified int64  // nanoseconds since 1970
	Blocks            uint64 // of 512 bytes
	Attributes        uint64 // STATX_ATTR_*
}

// Status reads afresh what changes with most of what happens to the image.
func (i *Image) Status() (Status, error) {
	st, err := i.statx(unix.STATX_BASIC_STATS | unix.STATX_BTIME)
	if err != nil {
		return Status{}, err
	}
	id, err := i.identity(st)
	return Status{Identity: id, Links: uint64(st.Nlink), Changed: nanoseconds(st.Ctime), Modified: nanoseconds(st.Mtime),
		Blocks: st.Blocks, Attributes: st.Attributes}, err
}

func nanoseconds(t unix.StatxTimestamp) int64 { return t.Sec*1e9 + int64(t.Nsec) }
