package lifecycle

import (
	"context"
	"testing"
	"time"

	"dmloop/guard"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/record"
)

// A verify that comes between two steps of an unmap does not take what is half undone
// for blocks that moved. One that finds a difference which stays says so, and also when
// the lock cannot be had.
func TestVerifyBesideAnotherCommand(t *testing.T) {
	for _, c := range []struct {
		what    string
		during  func(t *testing.T, w *world, m record.Record) // while the other command holds the lock
		targets []string
		wait    time.Duration // patience
		want    []guard.State
		class   fault.Class // of the error, if there is to be one
	}{
		{"unmapped meanwhile", deleteRecord, nil, time.Minute, nil, 0},
		{"unmapped meanwhile, named", deleteRecord, []string{"image"}, time.Minute, nil, fault.NotFound},
		{"killed half-way", func(t *testing.T, w *world, m record.Record) {
			m.State = guard.Releasing
			if err := w.store.Save(m); err != nil {
				t.Error(err)
			}
		}, nil, time.Minute, []guard.State{guard.Releasing}, 0},
		{"nothing else changed", func(*testing.T, *world, record.Record) {}, nil, time.Minute, []guard.State{guard.Failed}, 0},
		{"the lock is not to be had", nil, nil, 10 * time.Millisecond, []guard.State{guard.Failed}, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newWorld(t)
			m := w.mapped(t, "image", guard.Healthy)
			unlock, err := w.store.Lock(background(t))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.kernel.Conn().Remove(dm.ByUUID(m.UUID), dm.RemoveOptions{}); err != nil {
				t.Fatal(err)
			}
			if c.during == nil {
				defer unlock()
			} else {
				time.AfterFunc(50*time.Millisecond, func() { c.during(t, w, m); unlock() })
			}
			ctx, cancel := context.WithTimeout(background(t), 30*time.Second)
			defer cancel()
			all, err := w.fresh().WithPatience(c.wait).Verify(ctx, c.targets...)
			if (err != nil) != (c.class != 0) || err != nil && fault.ClassOf(err) != c.class {
				t.Fatalf("%v", err)
			}
			var got []guard.State
			for _, v := range all {
				got = append(got, v.State)
			}
			if len(got) != len(c.want) || len(got) == 1 && got[0] != c.want[0] {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func deleteRecord(t *testing.T, w *world, m record.Record) {
	if err := w.store.Delete(m.Name); err != nil {
		t.Error(err)
	}
}
