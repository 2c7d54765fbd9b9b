package backing

import (
	"fmt"
	"os"

	"dmloop/internal/inode"
)

// prepare sets what can only be set while the file is empty: it switches inherited
// compression off, on btrfs also copy-on-write, and pins the file on f2fs, where the blocks
// must be allocated after that (f2fs.rst).
func prepare(f *os.File, kind string) error {
	err := inode.ChangeFlags(f, 0, inode.Compress)
	switch {
	case err != nil:
	case kind == "btrfs": // in a step of its own: a file must not go from compressed to +C at once
		err = inode.ChangeFlags(f, inode.NoCOW, 0)
	case kind == "f2fs":
		err = inode.SetF2FSPin(f, true)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return nil
}
