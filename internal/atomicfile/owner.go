package atomicfile

import (
	"io/fs"
	"syscall"
)

// owner returns the owner of the file that is replaced, if there is one.
func owner(info fs.FileInfo) (*syscall.Stat_t, bool) {
	if info == nil {
		return nil, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return st, ok
}
