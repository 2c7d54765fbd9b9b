package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/guardrpc"
	"dmloop/internal/mapper"
	"dmloop/internal/record"
)

func background(t *testing.T) context.Context {
	t.Helper()
	return context.Background()
}

func TestUnmapByNameAndByImage(t *testing.T) {
	w := newWorld(t)
	for i, target := range []func(m record.Record) string{
		func(m record.Record) string { return m.Name },
		func(m record.Record) string { return "/dev/mapper/" + m.Name }, // as map prints it
		func(m record.Record) string { return m.Image.Path },
		func(m record.Record) string { // another way to the same inode
			link := filepath.Join(w.dir, "link")
			if err := os.Symlink(m.Image.Path, link); err != nil {
				t.Fatal(err)
			}
			return link
		},
	} {
		m := w.mapped(t, "image", guard.Healthy)
		if err := w.fresh().Unmap(background(t), target(m), UnmapOptions{}); err != nil {
			t.Errorf("%d: %v", i, err)
		}
		if n := w.accounted(t, "unmapped"); n != 0 || w.kernel.Len() != 0 {
			t.Errorf("%d: left %d records, %d devices", i, n, w.kernel.Len())
		}
		if err := os.Remove(m.Image.Path); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.fresh().Unmap(background(t), "image", UnmapOptions{}); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("unmapped again: %v", err)
	}
}

// Every request of unmap is made to fail in turn. Whatever fails, no device is left
// without a record, and the next unmap clears it all.
func TestUnmapWhenTheNthRequestFails(t *testing.T) {
	for _, c := range []struct {
		name  string
		open  int
		o     UnmapOptions
		errno unix.Errno
	}{
		{"plain", 0, UnmapOptions{}, unix.EIO},
		{"plain", 0, UnmapOptions{}, unix.ENOMEM},
		{"force", 1, UnmapOptions{Force: true}, unix.EIO},
		{"deferred", 1, UnmapOptions{Deferred: true}, unix.EIO},
	} {
		failed := 0
		for n := 1; ; n++ {
			w := newWorld(t)
			m := w.mapped(t, "image", guard.Healthy)
			w.kernel.SetOpen("image", c.open)
			w.kernel.FailNth(n, c.errno)
			err := w.fresh().Unmap(background(t), "image", c.o)
			calls := len(w.kernel.Calls())
			w.kernel.FailNth(0, 0)
			if n > calls { // none failed
				if err != nil {
					t.Errorf("%s without a failure: %v", c.name, err)
				}
				break
			}
			failed++
			w.accounted(t, c.name)
			if err != nil && fault.ClassOf(err) != fault.Failed {
				t.Errorf("%s, request %d failed with %v: class %d (%v)", c.name, n, c.errno, fault.ClassOf(err), err)
			}
			w.kernel.SetOpen("image", 0)
			if err == nil && w.kernel.Len() > 0 {
				t.Errorf("%s, request %d: no error, and the device stays", c.name, n)
			}
			again := w.fresh().Unmap(background(t), "image", UnmapOptions{})
			if again != nil && (err != nil || fault.ClassOf(again) != fault.NotFound) {
				t.Errorf("%s, request %d: the next unmap: %v (the first: %v)", c.name, n, again, err)
			}
			if left := w.accounted(t, c.name); left != 0 || w.kernel.Len() != 0 {
				t.Errorf("%s, request %d: left %d records, %d devices", c.name, n, left, w.kernel.Len())
			}
			if _, err := os.Stat(m.Image.Path); err != nil {
				t.Error(err)
			}
		}
		t.Logf("%s: %d requests failed in turn", c.name, failed)
		if failed == 0 {
			t.Errorf("%s: nothing was made to fail", c.name)
		}
	}
}

func TestUnmapBusy(t *testing.T) {
	w := newWorld(t)
	w.mapped(t, "image", guard.Weakened)
	w.kernel.SetOpen("image", 1)
	if err := w.fresh().Unmap(background(t), "image", UnmapOptions{}); fault.ClassOf(err) != fault.Busy {
		t.Errorf("%v", err)
	}
	m, err := w.store.Load("image")
	if err != nil || m.State != guard.Weakened || m.Reason != "" {
		t.Errorf("the record says %s (%s), %v", m.State, m.Reason, err)
	}
	if d, ok := w.kernel.Device("image"); !ok || d.Deferred || d.Suspended {
		t.Errorf("the device: %+v, %v", d, ok)
	}
}

func TestUnmapDeferred(t *testing.T) {
	w := newWorld(t)
	w.mapped(t, "image", guard.Healthy)
	w.kernel.SetOpen("image", 1)
	for range 2 { // asked for twice is no error
		if err := w.fresh().Unmap(background(t), "image", UnmapOptions{Deferred: true}); err != nil {
			t.Fatal(err)
		}
		if m, err := w.store.Load("image"); err != nil || m.State != guard.Releasing || m.Reason == "" {
			t.Errorf("the record says %s (%s), %v", m.State, m.Reason, err)
		}
	}
	if err := w.fresh().Unmap(background(t), "image", UnmapOptions{}); fault.ClassOf(err) != fault.Busy {
		t.Errorf("asked for without a delay: %v", err)
	}
	if d, ok := w.kernel.Device("image"); !ok || !d.Deferred || d.Active[0].Target != "linear" {
		t.Errorf("the device: %+v, %v", d, ok)
	}
	w.kernel.SetOpen("image", 0)
	if w.kernel.Len() != 0 {
		t.Fatal("the kernel did not remove it")
	}
	// Whatever command comes next finishes it.
	runNothing(t, w.fresh())
	if n := w.accounted(t, "closed"); n != 0 {
		t.Errorf("%d records left", n)
	}
}

// runNothing takes and drops the lock, as every command that changes something does.
func runNothing(t *testing.T, s *System) {
	t.Helper()
	turn, err := s.lock(background(t))
	if err != nil {
		t.Fatal(err)
	}
	turn.end()
}

func TestUnmapForce(t *testing.T) {
	w := newWorld(t)
	w.mapped(t, "image", guard.Healthy)
	w.kernel.SetOpen("image", 2)
	if err := w.fresh().Unmap(background(t), "image", UnmapOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	d, ok := w.kernel.Device("image")
	if !ok || len(d.Active) != 1 || d.Active[0].Target != "error" || d.Active[0].Length != 16 {
		t.Errorf("the device: %+v, %v", d, ok)
	}
	w.kernel.SetOpen("image", 0)
	if err := w.fresh().Unmap(background(t), "image", UnmapOptions{}); err != nil {
		t.Errorf("after the last close: %v", err)
	}
	if n := w.accounted(t, "closed"); n != 0 || w.kernel.Len() != 0 {
		t.Errorf("left %d records, %d devices", n, w.kernel.Len())
	}
}

// A command that was killed at any point leaves a record in state mapping or
// releasing, with the device or without; any next command clears it.
func TestRecover(t *testing.T) {
	for _, state := range []guard.State{guard.Mapping, guard.Releasing} {
		for _, device := range []bool{true, false} {
			for _, again := range []bool{true, false} {
				w := newWorld(t)
				m := w.mapped(t, "image", state)
				w.mapped(t, "other", guard.Healthy)
				if !device {
					if _, err := w.kernel.Conn().Remove(dm.ByUUID(m.UUID), dm.RemoveOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				if !again {
					runNothing(t, w.fresh())
				} else if err := w.fresh().Unmap(background(t), m.Image.Path, UnmapOptions{}); err != nil {
					// The same command again succeeds, though recovery did its work before it.
					t.Errorf("%s, device %v: %v", state, device, err)
				}
				if n := w.accounted(t, string(state)); n != 1 || w.kernel.Len() != 1 {
					t.Errorf("%s, device %v, unmapped again %v: %d records, %d devices", state, device, again, n, w.kernel.Len())
				}
			}
		}
	}
}

// A record whose image was deleted must not stay for ever.
func TestRecoverWithoutImage(t *testing.T) {
	w := newWorld(t)
	m := w.mapped(t, "image", guard.Mapping)
	if len(m.Image.Handle.Hex) == 0 || os.Geteuid() != 0 {
		t.Log("images are found by their path only here")
		return
	}
	if err := os.Remove(m.Image.Path); err != nil {
		t.Fatal(err)
	}
	if err := w.fresh().Unmap(background(t), "image", UnmapOptions{}); err != nil {
		t.Error(err)
	}
	if n := w.accounted(t, "gone"); n != 0 || w.kernel.Len() != 0 {
		t.Errorf("left %d records, %d devices", n, w.kernel.Len())
	}
}

// Another file under the image's name is never unpinned, and never taken for it.
func TestAnotherFileInItsPlace(t *testing.T) {
	w := newWorld(t)
	m := w.mapped(t, "image", guard.Healthy)
	moved := m.Image.Path + ".moved"
	if err := errors.Join(os.Rename(m.Image.Path, moved), os.WriteFile(m.Image.Path, make([]byte, 8192), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := w.fresh().Unmap(background(t), m.Image.Path, UnmapOptions{}); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("by the path of the new file: %v", err)
	}
	if _, ok := w.kernel.Device("image"); !ok {
		t.Fatal("the device is gone")
	}
	if err := w.fresh().Unmap(background(t), moved, UnmapOptions{}); err != nil && os.Geteuid() == 0 {
		t.Errorf("by the path of the old one: %v", err)
	}
}

func TestUnreadableRecordStopsNothingElse(t *testing.T) {
	w := newWorld(t)
	w.mapped(t, "image", guard.Healthy)
	w.mapped(t, "broken", guard.Healthy)
	path := filepath.Join(w.dir, "state", "broken.mapping")
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.fresh().Unmap(background(t), "image", UnmapOptions{}); err != nil {
		t.Errorf("another mapping: %v", err)
	}
	if err := w.fresh().Unmap(background(t), "broken", UnmapOptions{}); err == nil {
		t.Error("a record that cannot be read was acted on")
	}
	if _, ok := w.kernel.Device("broken"); !ok {
		t.Error("its device was removed")
	}
}

// A file that is called as a mapping was is not what deactivate and unmap --all mean.
func TestUnmapByNameOnly(t *testing.T) {
	w := newWorld(t)
	m := w.mapped(t, "image", guard.Healthy)
	t.Chdir(w.dir)
	if err := os.Symlink(m.Image.Path, "word"); err != nil {
		t.Fatal(err)
	}
	if err := w.fresh().Unmap(background(t), "word", UnmapOptions{NameOnly: true}); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	if _, err := w.store.Load("image"); err != nil {
		t.Errorf("the mapping is gone: %v", err)
	}
}

// A device that somebody renamed is the mapping's all the same.
func TestUnmapARenamedDevice(t *testing.T) {
	w := newWorld(t)
	m := w.mapped(t, "image", guard.Healthy)
	if _, err := w.kernel.Conn().Rename(dm.ByUUID(m.UUID), "other", 0); err != nil {
		t.Fatal(err)
	}
	// By the device's name it is none without a record, of which the image is not known.
	if err := w.fresh().Unmap(background(t), "other", UnmapOptions{}); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("by the new name: %v", err)
	}
	if _, ok := w.kernel.Device("other"); !ok {
		t.Fatal("the device is gone, and its image is not released")
	}
	if err := w.fresh().Unmap(background(t), "image", UnmapOptions{}); err != nil {
		t.Error(err)
	}
	if n := w.accounted(t, "renamed"); n != 0 || w.kernel.Len() != 0 {
		t.Errorf("left %d records, %d devices", n, w.kernel.Len())
	}
}

// tellable is a guard that is told nothing by a command that was interrupted.
type tellable struct {
	Guard
	dropped []string
}

func (g *tellable) Drop(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g.dropped = append(g.dropped, name)
	return nil
}

func (g *tellable) OpenImage(ctx context.Context, _ record.Image) (*os.File, error) {
	return nil, cmp.Or(ctx.Err(), guardrpc.ErrNotWatched)
}

// Ctrl-C does not end what an unmap has begun, and the guard hears of its end.
func TestUnmapInterrupted(t *testing.T) {
	w := newWorld(t)
	w.mapped(t, "image", guard.Healthy)
	m, err := w.store.Load("image")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(background(t))
	cancel()
	g := &tellable{}
	if err := w.fresh().WithGuard(g).finish(ctx, w.store, &m, nil); err != nil || !slices.Equal(g.dropped, []string{"image"}) {
		t.Errorf("%v, the guard was told of %q", err, g.dropped)
	}
	if n := w.accounted(t, "interrupted"); n != 0 || w.kernel.Len() != 0 {
		t.Errorf("left %d records, %d devices", n, w.kernel.Len())
	}
}

// An unmap that was cut off leaves the mapping that it was; not a healthy one when the
// device gives errors already, or when the image, which is looked at, is not as it was
// recorded: the layout is made up here.
func TestRecoverADeviceInUse(t *testing.T) {
	for _, torn := range []bool{false, true} {
		w := newWorld(t)
		m := w.mapped(t, "image", guard.Releasing)
		want := guard.Stale
		if torn {
			want = guard.Failed
			if _, err := w.kernel.Conn().ReplaceNow(dm.ByUUID(m.UUID), dmtable.ErrorTable(m.Table.Size()), 0); err != nil {
				t.Fatal(err)
			}
		}
		w.kernel.SetOpen("image", 1)
		runNothing(t, w.fresh())
		now, err := w.store.Load("image")
		if err != nil || now.State != want || now.Reason == "" || !now.Table.Equal(m.Table) {
			t.Errorf("torn down %v: %s (%s), %v", torn, now.State, now.Reason, err)
		}
		w.kernel.SetOpen("image", 0)
		if err := w.fresh().Unmap(background(t), "image", UnmapOptions{}); err != nil {
			t.Errorf("torn down %v: %v", torn, err)
		}
	}
}

// knowing is a guard that watches a mapping whose record somebody removed.
type knowing struct {
	tellable
	record record.Record
}

func (g *knowing) Record(context.Context, string) (record.Record, error) { return g.record, nil }

// What the guard remembers is enough to take a mapping down without its record: its
// partitions go first, and the image is released.
func TestUnmapByTheGuardsMemory(t *testing.T) {
	w := newWorld(t)
	m := w.mapped(t, "image", guard.Healthy)
	if err := w.store.Delete("image"); err != nil {
		t.Fatal(err)
	}
	g := &knowing{record: m}
	if err := w.fresh().WithGuard(g).Unmap(background(t), "image", UnmapOptions{}); err != nil || !slices.Equal(g.dropped, []string{"image"}) {
		t.Errorf("%v, the guard was told of %q", err, g.dropped)
	}
	if w.kernel.Len() != 0 {
		t.Error("the device is left")
	}
	// The memory of another mapping of the name does not count.
	m = w.mapped(t, "image", guard.Healthy)
	if err := w.store.Delete("image"); err != nil {
		t.Fatal(err)
	}
	g.dropped, g.record.UUID = nil, m.UUID[:len(m.UUID)-len("image")]+"other"
	if err := w.fresh().WithGuard(g).Unmap(background(t), "image", UnmapOptions{}); err != nil || len(g.dropped) > 0 {
		t.Errorf("%v, the guard was told of %q", err, g.dropped)
	}
}

// An unmap of a busy mapping removes nothing of it, its partitions neither.
func TestBusyUnmapKeepsPartitions(t *testing.T) {
	w := newWorld(t)
	m := w.mapped(t, "image", guard.Healthy)
	conn := w.kernel.Conn()
	for n := 1; n <= 2; n++ {
		part := record.Part{Name: fmt.Sprintf("imagep%d", n), Number: n}
		uuid := mapper.PartUUID(n, m.UUID)
		if _, err := conn.Create(part.Name, uuid); err != nil {
			t.Fatal(err)
		}
		m.Parts = append(m.Parts, part)
	}
	if err := w.store.Save(m); err != nil {
		t.Fatal(err)
	}
	// One partition was removed by hand, so one of the openers is none of ours.
	if _, err := conn.Remove(dm.ByName("imagep2"), dm.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	w.kernel.SetOpen("image", 2)
	if err := w.fresh().Unmap(background(t), "image", UnmapOptions{}); fault.ClassOf(err) != fault.Busy {
		t.Errorf("%v", err)
	}
	if _, there := w.kernel.Device("imagep1"); !there {
		t.Error("the partition is gone, and the mapping stays")
	}
	if now, err := w.store.Load("image"); err != nil || now.State != guard.Healthy {
		t.Errorf("%s, %v", now.State, err)
	}
	w.kernel.SetOpen("image", 1)
}

// A name with a typo gets the name that was meant.
func TestNearestName(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"image", "image", 0}, {"imge", "image", 1}, {"image", "imges", 2}, {"imaeg", "image", 2}, {"a", "", 1}, {"", "ab", 2}, {"kitten", "sitting", 3}} {
		if got := typos(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
	w := newWorld(t)
	w.mapped(t, "image", guard.Healthy)
	for target, want := range map[string]extents.Remedy{"imgae": advice.DidYouMean.Of("image"), "data": advice.SeeList, "x": advice.SeeList} {
		_, listed := w.fresh().List(background(t), target)
		_, verified := w.fresh().Verify(background(t), target)
		for _, err := range []error{listed, verified, w.fresh().Unmap(background(t), target, UnmapOptions{})} {
			var e *fault.Error
			if !errors.As(err, &e) || e.Class != fault.NotFound || e.Remedy != want {
				t.Errorf("%s: %v, %+v", target, err, e)
			}
		}
	}
}
