package guardd

import (
	"context"
	"errors"
	"os"

	"dmloop/internal/guardrpc"
	"dmloop/internal/record"
)

// Own is the guard as the use case sees it with which it finishes what a command left: the
// guard itself, without a detour by its socket.
type Own struct{ d *Daemon }

// Ensure has nothing to do: the guard runs.
func (o *Own) Ensure(context.Context) error { return nil }

// Prepare is for commands that map, which finishing never does.
func (o *Own) Prepare(context.Context, *os.File, bool) (denies bool, err error) {
	return false, errors.New("a guard maps nothing itself")
}

// Add makes the guard watch the mapping, once it has found it as recorded.
func (o *Own) Add(ctx context.Context, name string) error {
	_, err := o.d.Add(ctx, nil, name)
	return err
}

// Grow is for commands that make an image longer, which finishing never does.
func (o *Own) Grow(ctx context.Context, name string) error { return o.d.Grow(ctx, name) }

// Drop makes the guard forget the mapping.
func (o *Own) Drop(ctx context.Context, name string) error { return o.d.Drop(ctx, name) }

// Record returns the record of a watched mapping, without layout and table.
func (o *Own) Record(ctx context.Context, name string) (record.Record, error) {
	return o.d.Record(ctx, name)
}

// Watched lists the mappings that are watched.
func (o *Own) Watched(context.Context) (map[string]bool, error) {
	watched := map[string]bool{}
	for _, name := range o.d.names() {
		watched[name] = true
	}
	return watched, nil
}

// Close has nothing to give back.
func (o *Own) Close() {}

// OpenImage returns a descriptor of an image that is watched, or guardrpc.ErrNotWatched.
func (o *Own) OpenImage(ctx context.Context, want record.Image) (*os.File, error) {
	f, err := o.d.Open(ctx, want)
	var refused *guardrpc.Error
	if errors.As(err, &refused) && refused.Kind == guardrpc.KindNotFound {
		err = guardrpc.ErrNotWatched
	}
	return f, err
}
