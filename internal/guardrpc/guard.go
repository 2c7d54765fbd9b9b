package guardrpc

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"dmloop/internal/record"
)

// ErrNotWatched says that no guard watches the image.
var ErrNotWatched = errors.New("no guard watches the image")

// Guard is the guard of one state directory, whichever process that is. It keeps one
// connection, since what was prepared stays so only while that is open, and makes it
// when it is first needed. What a guard refuses is an *Error.
type Guard struct {
	dir    string
	client *Client
}

// NewGuard returns the guard of the state directory dir. Nothing is asked yet.
func NewGuard(dir string) *Guard { return &Guard{dir: dir} }

// Ensure starts a guard when none runs, and connects.
func (g *Guard) Ensure(ctx context.Context) error {
	client, err := EnsureRunning(ctx, g.dir)
	if err != nil {
		return err
	}
	if g.client != nil {
		g.client.Close()
	}
	g.client = client
	return nil
}

// Close gives the connection back.
func (g *Guard) Close() {
	if g.client != nil {
		g.client.Close()
		g.client = nil
	}
}

// dial connects unless there is a connection.
func (g *Guard) dial(ctx context.Context) (*Client, error) {
	if g.client != nil {
		return g.client, nil
	}
	client, err := Dial(ctx, g.dir)
	if err != nil {
		return nil, err
	}
	g.client = client
	return client, nil
}

// Prepare hands the guard the image before it is pinned, has it deny opens by others if
// deny is set, and says whether it does from then on. A guard that ended between Ensure and here, because it was idle, is
// started again.
func (g *Guard) Prepare(ctx context.Context, image *os.File, deny bool) (denies bool, err error) {
	p, err := g.client.Prepare(ctx, image, deny)
	var refused *Error
	if err != nil && !errors.As(err, &refused) {
		if err = g.Ensure(ctx); err == nil {
			p, err = g.client.Prepare(ctx, image, deny)
		}
	}
	return p.Denies == Yes, err
}

// Add returns once the guard watches the mapping and has found it as recorded.
func (g *Guard) Add(ctx context.Context, name string) error {
	client, err := g.dial(ctx)
	if err != nil {
		return err
	}
	_, err = client.Add(ctx, name)
	return err
}

// do makes a call that needs nothing of an earlier one. When the guard died since,
// it is made once more, to another guard that may have come.
func (g *Guard) do(ctx context.Context, call func(*Client) error) error {
	for again := false; ; again = true {
		client, err := g.dial(ctx)
		if err != nil {
			return err
		}
		err = call(client)
		var refused *Error
		if err == nil || errors.As(err, &refused) || errors.Is(err, os.ErrDeadlineExceeded) || again {
			return err
		}
		g.client.Close()
		g.client = nil
	}
}

// Drop makes the guard forget the mapping. One that does not run forgot it.
func (g *Guard) Drop(ctx context.Context, name string) error {
	err := g.do(ctx, func(c *Client) error { return c.Drop(ctx, name) })
	if errors.Is(err, ErrNoGuard) {
		return nil
	}
	return err
}

// Grow asks whether the guard knows that the image of a mapping is being made longer. One
// that does not run has nothing to know.
func (g *Guard) Grow(ctx context.Context, name string) error {
	err := g.do(ctx, func(c *Client) error { return c.Grow(ctx, name) })
	if errors.Is(err, ErrNoGuard) {
		return nil
	}
	return err
}

// Watched lists the mappings that a running guard watches; nil when none runs.
func (g *Guard) Watched(ctx context.Context) (map[string]bool, error) {
	var st Status
	err := g.do(ctx, func(c *Client) (err error) { st, err = c.Status(ctx); return err })
	if errors.Is(err, ErrNoGuard) {
		return nil, nil
	}
	watched := make(map[string]bool, len(st.Mappings))
	for _, m := range st.Mappings {
		watched[m.Name] = true
	}
	return watched, err
}

// Record returns the record of a watched mapping as the guard remembers it, without
// layout and table.
func (g *Guard) Record(ctx context.Context, name string) (m record.Record, err error) {
	err = g.do(ctx, func(c *Client) (err error) { m, err = c.Record(ctx, name); return err })
	return m, err
}

// OpenImage returns a descriptor, open for reading, of an image that the guard watches: of
// the inode that want names, wherever its path leads to by now. For any other, and without
// a running guard, it returns ErrNotWatched.
func (g *Guard) OpenImage(ctx context.Context, want record.Image) (*os.File, error) {
	var f *os.File
	err := g.do(ctx, func(c *Client) (err error) { f, err = c.OpenImage(ctx, want); return err })
	var refused *Error
	switch {
	case errors.Is(err, ErrNoGuard), errors.Is(err, fs.ErrPermission),
		errors.As(err, &refused) && refused.Kind == KindNotFound:
		return nil, ErrNotWatched
	}
	return f, err
}
