// Package backing makes image files and repairs them, so that every byte has a
// written block of its own. It is the only package that writes to the data of the
// user's file, and whatever it writes, the content stays what it was.
package backing

import (
	"errors"
	"fmt"

	"dmloop/extents"
	"dmloop/internal/image"

	"golang.org/x/sys/unix"
)

// Options are the same for all operations; the zero value is good.
type Options struct {
	// Progress, if set, is told how many bytes of how many are done. It is called by
	// one goroutine at a time, from 0 on, never with less than before, and with done
	// equal to total at the end. total may grow when a second round is needed.
	Progress func(done, total extents.Bytes)
	// Allow, if set, is asked once the file is open for writing, before it is changed. An
	// error of it ends the work and is returned as it is. Create does not ask.
	Allow func(img *image.Image) error
	Wait  image.Wait // for those who have the file open when the work begins
}

// ErrImmutable says that the file has the immutable attribute, so nothing can
// write to it.
var ErrImmutable = errors.New("the file is immutable (chattr +i)")

// NoSpaceError says that the file system has or had too little free space. It
// unwraps to ENOSPC.
type NoSpaceError struct {
	Path      string
	Needed    extents.Bytes // what the work takes
	Available extents.Bytes // what the file system has left for the caller
}

func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("%s: not enough space: %d bytes needed, %d available", e.Path, e.Needed, e.Available)
}

// Unwrap returns ENOSPC.
func (e *NoSpaceError) Unwrap() error { return unix.ENOSPC }
