package guardrpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/record"
)

// Time-outs for callers whose context has no deadline. A first full check of a
// hundred thousand extents takes a fraction of a second; a guard that does not
// answer for longer counts as hung.
const (
	dialTimeout = 2 * time.Second
	callTimeout = 30 * time.Second
)

// Client is a connection to a running guard. It is for one goroutine.
type Client struct{ c *conn }

// Dial connects to the guard of the state directory dir. The error wraps ErrNoGuard
// when none runs there.
func Dial(ctx context.Context, dir string) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	path := filepath.Join(dir, SocketName)
	nc, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("%s: %w", path, ErrNoGuard)
	case err != nil:
		return nil, fmt.Errorf("the guard's socket: %w", err)
	}
	return &Client{c: &conn{UnixConn: nc.(*net.UnixConn)}}, nil
}

// Close ends the connection. An image that was prepared and whose mapping was not
// added is no longer protected from then on.
func (c *Client) Close() error { return c.c.Close() }

// Prepare makes the guard refuse every open of the image by others from now on,
// except by this process while the connection is open. It comes before the write
// lease that proves that nobody has the image open: the descriptor is passed on, and
// a duplicate does not break a lease. The guard keeps a read-only descriptor
// and watches through it, so the image is never opened twice.
func (c *Client) Prepare(ctx context.Context, image *os.File, deny bool) (Prepared, error) {
	a, _, err := c.call(ctx, request{Op: opPrepare, WatchOnly: !deny}, image)
	if err != nil {
		return Prepared{}, err
	}
	if a.Prepared == nil {
		return Prepared{}, errShort
	}
	return *a.Prepared, nil
}

// Add makes the guard watch the mapping called name, whose record is saved and
// whose device is live. It returns when the guard watches and one full check found
// nothing different. Adding a watched mapping again reads its record again.
func (c *Client) Add(ctx context.Context, name string) (MappingState, error) {
	return c.mapping(ctx, request{Op: opAdd, Name: name})
}

// Drop makes the guard forget the mapping called name: when it returns, nothing of
// the image is held or refused any more. Dropping an unwatched one is not an error.
func (c *Client) Drop(ctx context.Context, name string) error {
	_, _, err := c.call(ctx, request{Op: opDrop, Name: name}, nil)
	return err
}

// Grow asks whether the guard knows, from the record, that the image of the mapping called
// name is being made longer, and so does not take it for a change by others. A guard of an
// earlier version does not know the request.
func (c *Client) Grow(ctx context.Context, name string) error {
	_, _, err := c.call(ctx, request{Op: opGrow, Name: name}, nil)
	return err
}

// OpenImage returns a read-only descriptor of a watched image, which an open of
// the path would not give. Which image is said by its inode, wherever the recorded path
// leads to; one that is not watched is KindNotFound.
func (c *Client) OpenImage(ctx context.Context, want record.Image) (*os.File, error) {
	_, f, err := c.call(ctx, request{Op: opOpen, Path: want.Path, Inode: want.Inode, Major: want.Major, Minor: want.Minor}, nil)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, errShort
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("the descriptor of %s: %w", want.Path, err)
	}
	if st.Ino != want.Inode || dmtable.DeviceOf(st.Dev) != want.Device() {
		return nil, Errorf(KindNotFound, "%s is another file where the guard runs", want.Path)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("the descriptor of %s: %w", want.Path, err)
	}
	return os.NewFile(uintptr(fd), want.Path), nil
}

// Record returns the record of a watched mapping as the guard remembers it, without
// layout and table. One that is not watched is KindNotFound.
func (c *Client) Record(ctx context.Context, name string) (record.Record, error) {
	a, _, err := c.call(ctx, request{Op: opRecord, Name: name}, nil)
	if err == nil && a.Record == nil {
		err = errShort
	}
	if err != nil {
		return record.Record{}, err
	}
	return *a.Record, nil
}

// Status returns what the guard knows of itself and its mappings.
func (c *Client) Status(ctx context.Context) (Status, error) {
	a, _, err := c.call(ctx, request{Op: opStatus}, nil)
	if err != nil {
		return Status{}, err
	}
	if a.Status == nil {
		return Status{}, errShort
	}
	return *a.Status, nil
}

// Check makes the guard check the mapping called name now, in full.
func (c *Client) Check(ctx context.Context, name string) (MappingState, error) {
	return c.mapping(ctx, request{Op: opCheck, Name: name})
}

// Metrics returns the guard's metrics in Prometheus' text format.
func (c *Client) Metrics(ctx context.Context) (string, error) {
	a, _, err := c.call(ctx, request{Op: opMetrics}, nil)
	return a.Metrics, err
}

var errShort = errors.New("guard: the answer lacks what was asked for")

func (c *Client) mapping(ctx context.Context, r request) (MappingState, error) {
	a, _, err := c.call(ctx, r, nil)
	if err != nil {
		return MappingState{}, err
	}
	if a.Mapping == nil {
		return MappingState{}, errShort
	}
	return *a.Mapping, nil
}

// call sends one request and waits for its answer. After a time-out the
// connection is of no use any more: a late answer would be taken for the next.
func (c *Client) call(ctx context.Context, r request, f *os.File) (answer, *os.File, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(callTimeout)
	}
	if err := c.c.SetDeadline(deadline); err != nil {
		return answer{}, nil, fmt.Errorf("guard: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { c.c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.c.send(r, f); err != nil {
		c.c.Close()
		return answer{}, nil, fmt.Errorf("guard: sending %s: %w", r.Op, err)
	}
	var a answer
	got, err := c.c.receive(&a, answerLimit)
	if err != nil {
		c.c.Close()
		return answer{}, nil, fmt.Errorf("guard: no answer to %s: %w", r.Op, err)
	}
	if a.Error != "" {
		if got != nil {
			got.Close()
		}
		return answer{}, nil, &Error{Kind: a.Kind, Message: a.Error}
	}
	return a, got, nil
}
