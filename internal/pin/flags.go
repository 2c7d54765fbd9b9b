package pin

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"dmloop/internal/fstype"
	"dmloop/internal/inode"
)

var errNotThere = errors.New("the flag did not take")

// InForce lists the pins that the file system reports for f, whoever set them, in
// the order in which they are set. An active swap claim is not among them: it is
// proved by other means (package swap).
func InForce(f *os.File, filesystem string) ([]Kind, error) {
	if fstype.Of(filesystem).Bare {
		return nil, nil
	}
	flags, err := inode.Flags(f)
	if err != nil {
		return nil, fmt.Errorf("reading the inode flags: %w", err)
	}
	var kinds []Kind
	own := fstype.Of(filesystem).Pin
	if own == NoDefrag {
		xflags, err := inode.XFlags(f)
		if err != nil {
			return nil, fmt.Errorf("reading the xfs inode flags: %w", err)
		}
		if xflags&inode.XNoDefrag != 0 {
			kinds = append(kinds, NoDefrag)
		}
	}
	if own == F2FS && flags&inode.NoCOW != 0 {
		// The ioctl's number counts the collector's failed tries, so only its
		// success says something; the flag above is what a dropped pin clears.
		if _, err := inode.F2FSPinFailures(f); err != nil {
			return nil, fmt.Errorf("reading the f2fs pin: %w", err)
		}
		kinds = append(kinds, F2FS)
	}
	if flags&inode.Immutable != 0 {
		kinds = append(kinds, Immutable)
	}
	return kinds, nil
}

// put sets or clears one pin and reads it back.
func put(f *os.File, filesystem string, k Kind, on bool) error {
	var err error
	switch k {
	case Immutable:
		err = change(inode.ChangeFlags, f, inode.Immutable, on)
	case NoDefrag:
		err = change(inode.ChangeXFlags, f, inode.XNoDefrag, on)
	case F2FS:
		err = inode.SetF2FSPin(f, on)
	default:
		return fmt.Errorf("pin %q is not an inode flag", k)
	}
	if err != nil {
		return err
	}
	now, err := InForce(f, filesystem)
	if err != nil {
		return err
	}
	if slices.Contains(now, k) != on {
		return errNotThere
	}
	return nil
}

func change(of func(f *os.File, on, off uint32) error, f *os.File, flag uint32, on bool) error {
	if on {
		return of(f, flag, 0)
	}
	return of(f, 0, flag)
}
