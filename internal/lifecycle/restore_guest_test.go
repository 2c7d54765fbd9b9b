//go:build vmtest

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"dmloop/extents"
	"dmloop/internal/fault"
	"dmloop/internal/vmtest"
)

// A mapping that is made of its record alone looks at every device, as one that is made
// of its image does: not only at those of dmloop.
func TestRestoreLooksAtEveryDevice(t *testing.T) {
	s := newScene(t, "ext4", false)
	ctx := context.Background()
	f := openFaulty(t)
	if _, err := f.next(s.dir, 0).Map(ctx, s.image, MapOptions{Name: "image", NoGuard: true}); err != nil {
		t.Fatal(err)
	}
	m, _, err := f.next(s.dir, 0).Recorded(ctx, "image")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.next(s.dir, 0).Unmap(ctx, "image", UnmapOptions{}); err != nil {
		t.Fatal(err)
	}
	segments, err := m.Table.Segments()
	if err != nil {
		t.Fatal(err)
	}
	last := segments[len(segments)-1]
	vmtest.Must(t, "dmsetup", "create", "byhand", "--table", fmt.Sprintf("0 8 linear %s %d", last.Device, last.End()-8))
	t.Cleanup(func() { vmtest.DmsetupRemove(t, "byhand") })
	_, err = f.next(s.dir, 0).Restore(ctx, m)
	var e *fault.Error
	if !errors.As(err, &e) || len(e.Problems) == 0 || e.Problems[0].Rule != extents.Overlap {
		t.Errorf("beside a device by hand: %v", err)
	}
	if err == nil {
		if err := f.next(s.dir, 0).Unmap(ctx, "image", UnmapOptions{}); err != nil {
			t.Error(err)
		}
	}
	vmtest.DmsetupRemove(t, "byhand")
	if _, err := f.next(s.dir, 0).Restore(ctx, m); err != nil {
		t.Errorf("alone: %v", err)
	}
	if err := f.next(s.dir, 0).Unmap(ctx, "image", UnmapOptions{}); err != nil {
		t.Error(err)
	}
}
