package image

import (
	"fmt"

	"golang.org/x/sys/unix"
)

func (i *Image) statx(mask int) (unix.Statx_t, error) {
	var st unix.Statx_t
	_, err := retry(func() (struct{}, error) {
		return struct{}{}, unix.Statx(i.fd(), "", unix.AT_EMPTY_PATH, mask, &st)
	})
	if err != nil {
		return st, fmt.Errorf("%s: statx: %w", i.Path(), err)
	}
	return st, nil
}

func (i *Image) wrap(err error) error { return fmt.Errorf("%s: %w", i.Path(), err) }
