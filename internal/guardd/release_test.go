package guardd

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"dmloop/guard"
	"dmloop/internal/dm"
	"dmloop/internal/guardrpc"
	"dmloop/internal/record"
)

// finisher stands for the use case: it removes the device and then the record, as every
// command does (the guard writes the record of a live device again), but fails the first
// times.
func (r *rig) finisher(failures int32) (calls *atomic.Int32) {
	calls = &atomic.Int32{}
	r.finish = func(context.Context) error {
		if calls.Add(1) <= failures {
			return errors.New("the file system is read-only")
		}
		if _, err := r.kernel.Conn().Remove(dm.ByUUID(uuid), dm.RemoveOptions{}); err != nil {
			return err
		}
		return r.store.Delete("vol")
	}
	return calls
}

func (r *rig) setState(s guard.State) {
	r.t.Helper()
	m := r.record()
	m.State = s
	r.save(m)
}

func (r *rig) gone() bool {
	_, err := r.store.Head("vol")
	return errors.Is(err, record.ErrNotFound)
}

func TestFinishesWhatWasLeftBefore(t *testing.T) {
	for _, state := range []guard.State{guard.Releasing, guard.Mapping} {
		r := newRig(t)
		calls := r.finisher(0)
		r.setState(state)
		r.start()
		r.await("the end of the release", r.gone)
		if n := calls.Load(); n != 1 {
			t.Errorf("%s: finished %d times", state, n)
		}
	}
}

func TestFinishesWhatACommandLeaves(t *testing.T) {
	r := newRig(t)
	calls := r.finisher(1)
	c, _ := r.start()
	metrics := func() string {
		text, err := c.Metrics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	r.setState(guard.Weakened) // not the end of anything
	if want := `dmloop_guard_mappings{state="releasing"} 0`; !strings.Contains(metrics(), want) {
		t.Errorf("the metrics lack %s", want)
	}
	r.setState(guard.Releasing)
	r.await("the metrics", func() bool { return strings.Contains(metrics(), `dmloop_guard_mappings{state="releasing"} 1`) })
	r.await("a second try", r.gone)
	if n := calls.Load(); n != 2 {
		t.Errorf("tried %d times", n)
	}
}

// A removal that was put off ends with the last user of the device, which the
// kernel tells.
func TestDeferredRemovalIsFinished(t *testing.T) {
	r := newRig(t)
	tries := &atomic.Int32{}
	r.finish = func(context.Context) error {
		tries.Add(1)
		if _, ok := r.kernel.Device("vol"); ok {
			return errors.New("removal is pending")
		}
		return r.store.Delete("vol")
	}
	c, _ := r.start()
	r.setState(guard.Releasing)
	r.await("the first try", func() bool { return tries.Load() > 0 })
	if _, err := r.kernel.Conn().Remove(dm.ByUUID(uuid), dm.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	// There are no uevents of a fake kernel.
	if _, err := c.Check(t.Context(), "vol"); err != nil && !isKind(err, guardrpc.KindNotFound) {
		t.Fatal(err)
	}
	r.await("the end of the release", r.gone)
}

func isKind(err error, k guardrpc.ErrorKind) bool {
	var e *guardrpc.Error
	return errors.As(err, &e) && e.Kind == k
}

// A device whose removal was put off is live until it is closed: a guard that comes
// meanwhile watches it.
func TestAdoptsWhatLingers(t *testing.T) {
	r := newRig(t)
	r.finish = func(context.Context) error { return errors.New("removal is pending") }
	r.kernel.SetOpen("vol", 1)
	if _, err := r.kernel.Conn().Remove(dm.ByName("vol"), dm.RemoveOptions{Deferred: true}); err != nil {
		t.Fatal(err)
	}
	r.setState(guard.Releasing)
	c, _ := r.start()
	st, err := c.Status(t.Context())
	if err != nil || len(st.Mappings) != 1 {
		t.Fatalf("watched: %+v (%v)", st.Mappings, err)
	}
	if err := os.Truncate(r.image, 0); err != nil {
		t.Fatal(err)
	}
	r.await("the tear-down", r.tornDown)
	if got := r.record().State; got != guard.Releasing {
		t.Errorf("the record says %s", got)
	}
}
