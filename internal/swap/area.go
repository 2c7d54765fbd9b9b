package swap

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrNotListed says that the kernel's list of swap areas does not show the file, as far
// as its paths lead from here.
var ErrNotListed = errors.New("the file is not in the kernel's list of swap areas")

// Area returns what the kernel lists of f as an active swap area. The list has paths
// only, so a row is the file's when its path leads to this very inode, or is the one
// that the kernel gives for the descriptor itself, which it is as long as the area was
// claimed through the same mount; folders above may be renamed meanwhile, so both are
// asked before and after. More than one row, or none, is an error.
func Area(f *os.File) (Entry, error) {
	var own unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &own); err != nil {
		return Entry{}, &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	for range areaTries {
		before, err := os.Readlink(self(f))
		if err != nil {
			return Entry{}, err
		}
		rows, err := Table()
		if err != nil {
			return Entry{}, err
		}
		var found []Entry
		for _, e := range rows {
			if st, there := e.Stat(); e.Path == before || there && st.Dev == own.Dev && st.Ino == own.Ino {
				found = append(found, e)
			}
		}
		after, err := os.Readlink(self(f))
		switch {
		case err != nil:
			return Entry{}, err
		case after != before:
		case len(found) == 1:
			return found[0], nil
		case len(found) == 0:
			return Entry{}, fmt.Errorf("%s: %w", f.Name(), ErrNotListed)
		}
	}
	return Entry{}, fmt.Errorf("%s: cannot tell which of the kernel's swap areas it is", f.Name())
}

// areaTries bounds how often the list is read while somebody renames what lies on the
// way to the file.
const areaTries = 5
