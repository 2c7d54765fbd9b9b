package watch

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Swaps says when somebody runs swapon or swapoff: poll(2) on /proc/swaps gives
// POLLPRI then, once for each poller.
type Swaps struct{ poller *poller }

// ErrNoSwap says that the kernel has no swap, so that nothing can change.
var ErrNoSwap = errors.New("this kernel has no swap")

// NewSwaps begins to watch. The kernel compares its counter with the descriptor's
// own, which every poll brings up to date (swaps_poll in mm/swapfile.c), so nothing
// has to be read.
func NewSwaps(changed func()) (*Swaps, error) {
	fd, err := unix.Open("/proc/swaps", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, ErrNoSwap
	}
	if err != nil {
		return nil, fmt.Errorf("/proc/swaps: %w", err)
	}
	p, err := newPoller(fd, unix.POLLPRI, func() bool { changed(); return true })
	if err != nil {
		return nil, err
	}
	return &Swaps{poller: p}, nil
}

// Close ends the goroutine and closes the file.
func (s *Swaps) Close() error { return s.poller.close() }
