// Package watch listens to what the kernel tells about images and the devices
// below them: inotify by fsnotify, fanotify, uevents and /proc/swaps. Each
// source calls its owner from a goroutine of its own; the call must not wait. All
// but the gate's answers are hints: none of them proves anything, and a source that
// lost some says so. A source is not used after it is closed.
package watch

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/internal/inode"
	"dmloop/internal/ration"
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

// Whatever the kernel has to tell is taken at once, eagerly times in a row, and then
// after a rest: what others can cause is worth a call for many messages, not for each.
const (
	eagerly = 50
	rest    = 5 * time.Millisecond
)

func (p *poller) run(events int16, ready func() bool) {
	defer close(p.done)
	source, wake := unix.PollFd{Fd: int32(p.fd), Events: events}, unix.PollFd{Fd: int32(p.wake), Events: unix.POLLIN}
	calls := ration.Ration{Burst: eagerly, Every: rest}
	for {
		fds, patience := []unix.PollFd{wake, source}, -1
		if wait := calls.Wait(time.Now()); wait > 0 {
			fds, patience = fds[:1], int(wait.Milliseconds())+1
		}
		if _, err := unix.Poll(fds, patience); err != nil {
			continue // EINTR; with valid arguments there is nothing else but ENOMEM
		}
		if fds[0].Revents != 0 {
			return
		}
		if len(fds) > 1 && fds[1].Revents != 0 {
			calls.Take(time.Now())
			if !ready() {
				return
			}
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
func selfPath(f *os.File) string { return inode.Link(int(f.Fd())) }
