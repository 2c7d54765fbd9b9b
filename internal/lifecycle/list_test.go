package lifecycle

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/dm/dmtest"
	"dmloop/internal/fault"
	"dmloop/internal/guardrpc"
	"dmloop/internal/image"
	"dmloop/internal/pin"
	"dmloop/internal/record"
)

func byName(t *testing.T, all []Status, name string) Status {
	t.Helper()
	for _, st := range all {
		if st.Name == name {
			return st
		}
	}
	t.Errorf("%s is not listed", name)
	return Status{}
}

func TestListWithoutAnything(t *testing.T) {
	s := NewSystem(filepath.Join(t.TempDir(), "none"), nil).WithConn(dmtest.New().Conn())
	if all, err := s.List(background(t)); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	if _, err := s.List(background(t), "x"); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	if _, err := s.Verify(background(t), "x"); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(s.stateDir); err == nil {
		t.Error("listing made the state directory")
	}
}

// The record says what was; list says what is.
func TestListComparesWithTheKernel(t *testing.T) {
	w := newWorld(t)
	w.mapped(t, "fine", guard.Healthy)
	gone := w.mapped(t, "gone", guard.Healthy)
	paused := w.mapped(t, "paused", guard.Healthy)
	failed := w.mapped(t, "failed", guard.Failed)
	failed.Reason = "moved"
	if err := w.store.Save(failed); err != nil {
		t.Fatal(err)
	}
	conn := w.kernel.Conn()
	if _, err := conn.Remove(dm.ByUUID(gone.UUID), dm.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Suspend(dm.ByUUID(paused.UUID), dm.SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
	orphan, err := record.NewUUID("orphan", "")
	if err != nil {
		t.Fatal(err)
	}
	for name, uuid := range map[string]string{"orphan": orphan, "lvm": "LVM-abc", "shim": record.ShimPrefix + "x", "plain": ""} {
		if _, err := conn.Create(name, uuid); err != nil {
			t.Fatal(err)
		}
	}
	w.kernel.SetOpen("fine", 3)
	all, err := w.fresh().List(background(t))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, st := range all {
		names = append(names, st.Name)
	}
	slices.Sort(names)
	if want := []string{"failed", "fine", "gone", "orphan", "paused"}; !slices.Equal(names, want) {
		t.Errorf("listed %q, want %q", names, want)
	}
	fine := byName(t, all, "fine")
	if fine.State != guard.Healthy || fine.Open != 3 || fine.Device != "/dev/mapper/fine" || fine.MajMin == "" || fine.Reason != "" {
		t.Errorf("%+v", fine)
	}
	if st := byName(t, all, "gone"); st.State != guard.Failed || st.Device != "" || st.Reason == "" {
		t.Errorf("%+v", st)
	}
	if st := byName(t, all, "paused"); st.State != guard.Suspended || st.Reason == "" || st.Broken() {
		t.Errorf("%+v", st)
	}
	if st := byName(t, all, "failed"); st.State != guard.Failed || st.Reason != "moved" || !st.Broken() {
		t.Errorf("%+v", st)
	}
	if st := byName(t, all, "orphan"); st.State != guard.Stale || st.Grade != pin.Unsafe || !strings.Contains(st.Reason, "record") {
		t.Errorf("%+v", st)
	}
}

// changes is a guard that changes something while a list asks it, once.
type changes struct {
	Guard
	change func()
}

func (c *changes) Watched(context.Context) (map[string]bool, error) {
	if c.change != nil {
		c.change()
		c.change = nil
	}
	return nil, nil
}

func (c *changes) OpenImage(context.Context, record.Image) (*os.File, error) {
	return nil, guardrpc.ErrNotWatched
}

// A list that comes between two steps of an unmap does not take what is half undone
// for a lost pin.
func TestListBesideAnUnmap(t *testing.T) {
	w := newWorld(t)
	m := w.mapped(t, "image", guard.Healthy)
	m.Pins, m.Grade = []record.Pin{{Kind: "immutable", Ours: true}}, "kernel" // which the unmap has just cleared
	if err := w.store.Save(m); err != nil {
		t.Fatal(err)
	}
	begun := m
	begun.State = guard.Releasing
	for _, targets := range [][]string{nil, {"image"}} {
		if err := w.store.Save(m); err != nil {
			t.Fatal(err)
		}
		s := w.fresh().WithGuard(&changes{change: func() {
			if err := w.store.Save(begun); err != nil {
				t.Error(err)
			}
		}})
		if st := byName(t, must(s.List(background(t), targets...))(t), "image"); st.State != guard.Releasing {
			t.Errorf("%q: %+v", targets, st)
		}
		if err := w.store.Save(m); err != nil {
			t.Fatal(err)
		}
		s = w.fresh().WithGuard(&changes{change: func() {
			deleteRecord(t, w, m)
			if _, err := w.kernel.Conn().Remove(dm.ByUUID(m.UUID), dm.RemoveOptions{}); err != nil {
				t.Error(err)
			}
		}})
		all, err := s.List(background(t), targets...)
		if len(all) != 0 || targets == nil && err != nil || targets != nil && fault.ClassOf(err) != fault.NotFound {
			t.Errorf("%q: %+v, %v", targets, all, err)
		}
		w.mapped(t, "image", guard.Healthy)
		m = must(w.store.Load("image"))(t)
		m.Pins, m.Grade = []record.Pin{{Kind: "immutable", Ours: true}}, "kernel"
		begun = m
		begun.State = guard.Releasing
	}
}

// hungGuard never answers in time.
type hungGuard struct {
	Guard
	asked int
}

func (g *hungGuard) Watched(context.Context) (map[string]bool, error) {
	g.asked++
	return nil, os.ErrDeadlineExceeded
}

func (g *hungGuard) OpenImage(context.Context, record.Image) (*os.File, error) {
	g.asked++
	return nil, os.ErrDeadlineExceeded
}

// A guard that does not answer holds a list up once, not once for each mapping, and
// what it would have told is not made up.
func TestListWithAHungGuard(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"a", "b", "c"} {
		w.mapped(t, name, guard.Healthy)
	}
	g := &hungGuard{}
	all, err := w.fresh().WithGuard(g).List(background(t))
	if err != nil || len(all) != 3 || g.asked != 1 {
		t.Errorf("asked %d times: %+v, %v", g.asked, all, err)
	}
	for _, st := range all {
		if st.Guard || st.State != guard.Healthy {
			t.Errorf("%+v", st)
		}
	}
}

// An open that a hanging guard holds up is given up, and not tried again.
func TestHeldOpen(t *testing.T) {
	w := newWorld(t)
	m := w.mapped(t, "image", guard.Healthy)
	s := w.fresh()
	s.guard.hung = os.ErrDeadlineExceeded
	img, err := s.guard.open(m.Image, openUnwatched, s.patience.held)
	if err != nil {
		t.Fatal(err)
	}
	img.Close()
	goOn := make(chan struct{})
	wait := func(found *image.Found) (*image.Image, error) {
		<-goOn
		return openUnwatched(found)
	}
	for range 2 {
		if img, err := s.guard.open(m.Image, wait, s.patience.held); fault.ClassOf(err) != fault.Failed || img != nil || !s.guard.held {
			t.Errorf("%v, %v", img, err)
		}
		wait = func(*image.Found) (*image.Image, error) { t.Error("tried again"); return nil, os.ErrInvalid }
	}
	close(goOn)
}

// A device that no record names is found by its name as well.
func TestListOfAnOrphanByName(t *testing.T) {
	w := newWorld(t)
	m := w.mapped(t, "image", guard.Healthy)
	w.mapped(t, "other", guard.Healthy)
	deleteRecord(t, w, m)
	all, err := w.fresh().List(background(t), "other", "image")
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	if st := byName(t, all, "image"); st.State != guard.Stale || st.Size != 8192 {
		t.Errorf("%+v", st)
	}
	if all, err := w.fresh().List(background(t), "/dev/mapper/image", "/dev/mapper/other"); err != nil || len(all) != 2 {
		t.Errorf("by device: %+v, %v", all, err)
	}
	if _, err := w.fresh().List(background(t), "image", "none"); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	gone := NewSystem(filepath.Join(t.TempDir(), "none"), nil).WithConn(w.kernel.Conn())
	if all, err := gone.List(background(t)); err != nil || len(all) != 2 {
		t.Errorf("without a state directory: %+v, %v", all, err)
	}
	if err := w.fresh().Unmap(background(t), "/dev/mapper/image", UnmapOptions{}); err != nil {
		t.Error(err)
	}
}

// What is in the way of mapping any image is known before this one is touched.
func TestCanMap(t *testing.T) {
	w := newWorld(t)
	m := w.mapped(t, "image", guard.Healthy)
	if _, err := w.kernel.Conn().Create("device", ""); err != nil {
		t.Fatal(err)
	}
	free := filepath.Join(w.dir, "free")
	if err := os.WriteFile(free, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		o    MapOptions
		want fault.Class // 0 for nothing in the way
	}{
		{free, MapOptions{}, 0},
		{free, MapOptions{Name: "image"}, fault.Busy},
		{free, MapOptions{Name: "device"}, fault.Busy},
		{free, MapOptions{Name: "a/b"}, fault.Usage},
		{free, MapOptions{UUID: "zz"}, fault.Usage},
		{free, MapOptions{Pin: "glue"}, fault.Usage},
		{m.Image.Path, MapOptions{Name: "again"}, fault.Busy},
		{filepath.Join(w.dir, "missing"), MapOptions{}, fault.NotFound},
	} {
		if err := w.fresh().CanMap(c.path, c.o); c.want == 0 && err != nil || c.want != 0 && fault.ClassOf(err) != c.want {
			t.Errorf("%s, %+v: %v", c.path, c.o, err)
		}
	}
}

// To pin a mapped image by hand would lift its pin for a moment.
func TestPinRefusesAMappedImage(t *testing.T) {
	w := newWorld(t)
	m := w.mapped(t, "image", guard.Healthy)
	if _, err := w.fresh().Pin(background(t), m.Image.Path, false); fault.ClassOf(err) != fault.Busy || !strings.Contains(err.Error(), "mapped already as image") {
		t.Errorf("%v", err)
	}
}

// A pin that the record has and the file has not.
func TestListSeesLostPins(t *testing.T) {
	w := newWorld(t)
	m := w.mapped(t, "image", guard.Healthy)
	m.Pins, m.Grade = []record.Pin{{Kind: "immutable", Ours: true}}, "kernel"
	if err := w.store.Save(m); err != nil {
		t.Fatal(err)
	}
	st := byName(t, must(w.fresh().List(background(t), "image"))(t), "image")
	if st.State != guard.Stale || st.Grade != "unsafe" || !strings.Contains(st.Reason, "immutable") || len(st.Pins) != 0 {
		t.Errorf("%+v", st)
	}
	m.Grade = "unsafe" // nothing is lost that the grade needed
	if err := w.store.Save(m); err != nil {
		t.Fatal(err)
	}
	if st := byName(t, must(w.fresh().List(background(t)))(t), "image"); st.State != guard.Weakened {
		t.Errorf("%+v", st)
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// One record that cannot be read must not hide the others, nor look like a healthy one.
func TestListWithAnUnreadableRecord(t *testing.T) {
	w := newWorld(t)
	w.mapped(t, "fine", guard.Healthy)
	w.mapped(t, "broken", guard.Healthy)
	if err := os.WriteFile(filepath.Join(w.dir, "state", "broken.mapping"), []byte("junk\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := w.fresh().List(background(t))
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	if st := byName(t, all, "broken"); st.State != guard.Stale || st.Reason == "" {
		t.Errorf("%+v", st)
	}
	if st := byName(t, all, "fine"); st.State != guard.Healthy {
		t.Errorf("%+v", st)
	}
	if _, err := w.fresh().List(background(t), "broken"); err == nil {
		t.Error("asked for by name, it is no error")
	}
	// Whether another image is the one that the record is of cannot be told: nothing is done.
	var hinted *fault.Error
	other := filepath.Join(w.dir, "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	found := must(image.Find(other))(t)
	defer found.Close()
	if err := w.fresh().NotMapped(found); !errors.As(err, &hinted) || hinted.Remedy != advice.RemoveByHand.Of(filepath.Join(w.dir, "state")) {
		t.Errorf("%v", err)
	}
	if err := w.fresh().Unmap(background(t), "broken", UnmapOptions{}); !errors.As(err, &hinted) || hinted.Remedy == (extents.Remedy{}) {
		t.Errorf("unmap: %v", err)
	}
	verified, err := w.fresh().Verify(background(t))
	if err != nil || len(verified) != 2 {
		t.Fatalf("%+v, %v", verified, err)
	}
	for _, v := range verified {
		if v.Name == "broken" && v.State != guard.Stale {
			t.Errorf("%+v", v)
		}
	}
}

// An answer that the kernel refuses is never shown as a healthy mapping.
func TestListWhenTheNthRequestFails(t *testing.T) {
	for n := 1; ; n++ {
		w := newWorld(t)
		w.mapped(t, "image", guard.Healthy)
		w.kernel.FailNth(n, unix.EIO)
		all, err := w.fresh().List(background(t))
		if n > len(w.kernel.Calls()) {
			if n < 3 {
				t.Errorf("only %d requests", n)
			}
			return
		}
		if err == nil && byName(t, all, "image").State == guard.Healthy && n == 1 {
			t.Errorf("request %d failed: %+v", n, all)
		}
	}
}
