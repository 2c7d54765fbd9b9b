package observe

import (
	"fmt"

	"dmloop/internal/fstype"
	"dmloop/internal/record"
	"dmloop/internal/swap"
)

// letGo says of an image that nothing in the kernel holds any more where inode numbers are
// made up: from then on nobody can tell which file it was, and nothing pins it. For all
// that is done about it, it is gone.
type letGo struct{ want record.Image }

func (e letGo) Error() string {
	return fmt.Sprintf("the kernel does not hold %s as a swap file any more (swapoff, or the file system was unmounted), and by nothing else a file keeps its number on %s",
		e.want.Path, e.want.Filesystem)
}

// Is makes it an ErrImageGone.
func (e letGo) Is(target error) bool { return target == ErrImageGone }

// heldNowhere reports whether no swap area of the kernel can be the image of the record: it
// is none of those that are listed. One that cannot be looked at may be it.
func heldNowhere(want record.Image) bool {
	if !fstype.Of(want.Filesystem).Bare {
		return false
	}
	areas, err := swap.Table()
	if err != nil {
		return false
	}
	for _, area := range areas {
		if area.Type != "file" {
			continue
		}
		st, found := area.Stat()
		if !found || st.Ino == want.Inode {
			return false
		}
	}
	return true
}
