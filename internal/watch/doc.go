// Package watch listens to what the kernel tells about images and the devices
// below them: inotify, fanotify permission events, uevents and /proc/swaps. Each
// source calls its owner from a goroutine of its own; the call must not wait. All
// but the gate's answers are hints: none of them proves anything, and a source that
// lost some says so. A source is not used after it is closed.
package watch

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// poller calls ready whenever its descriptor has something to read.
type poller struct {
	fd, wake int
	done     chan struct{}
	once     sync.Once
}

// newPoller takes over fd. It asks the kernel before each call (poll(2) is level
// triggered), so ready may leave something unread. The goroutine ends when ready
// returns false.
func newPoller(fd int, events int16, ready func() bool) (*poller, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	p := &poller{fd: fd, wake: wake, done: make(chan struct{})}
	go p.run(events, ready)
	return p, nil
}

func (p *poller) run(events int16, ready func() bool) {
	defer close(p.done)
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: events}, {Fd: int32(p.wake), Events: unix.POLLIN}}
	for {
		fds[0].Revents, fds[1].Revents = 0, 0
		if _, err := unix.Poll(fds, -1); err != nil {
			continue // EINTR; with valid arguments there is nothing else but ENOMEM
		}
		if fds[1].Revents != 0 || fds[0].Revents != 0 && !ready() {
			return
		}
	}
}

// close ends the goroutine and closes the descriptor.
func (p *poller) close() error {
	var err error
	p.once.Do(func() {
		unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		<-p.done
		err = errors.Join(unix.Close(p.fd), unix.Close(p.wake))
	})
	return err
}

// selfPath names the inode of an open file without opening it again.
func selfPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
