package backing

import (
	"fmt"
	"os"

	"dmloop/internal/fstype"
	"dmloop/internal/inode"
	"dmloop/internal/pin"
)

// prepare sets what can only be set while the file is empty: it switches inherited
// compression off, on btrfs also copy-on-write, and pins the file on f2fs, where the blocks
// must be allocated after that (f2fs.rst).
func prepare(f *os.File, kind string) error {
	if fstype.Of(kind).Bare {
		return nil
	}
	err := inode.ChangeFlags(f, 0, inode.Compress)
	switch fs := fstype.Of(kind); {
	case err != nil:
	case fs.NoCopyOnWrite: // in a step of its own: a file must not go from compressed to +C at once
		err = inode.ChangeFlags(f, inode.NoCOW, 0)
	case fs.Pin == pin.F2FS:
		err = inode.SetF2FSPin(f, true)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return nil
}
