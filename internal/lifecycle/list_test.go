package lifecycle

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/internal/dm"
	"dmloop/internal/dm/dmtest"
	"dmloop/internal/manifest"
	"dmloop/internal/pin"
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
	if _, err := s.List(background(t), "x"); ClassOf(err) != NotFound {
		t.Errorf("%v", err)
	}
	if _, err := s.Verify(background(t), "x"); ClassOf(err) != NotFound {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(s.stateDir); err == nil {
		t.Error("listing made the state folder")
	}
}

// The record says what was; list says what is.
func TestListComparesWithTheKernel(t *testing.T) {
	w := newWorld(t)
	w.mapped(t, "fine", manifest.Healthy)
	gone := w.mapped(t, "gone", manifest.Healthy)
	paused := w.mapped(t, "paused", manifest.Healthy)
	failed := w.mapped(t, "failed", manifest.Failed)
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
	orphan, err := manifest.NewUUID("orphan", "")
	if err != nil {
		t.Fatal(err)
	}
	for name, uuid := range map[string]string{"orphan": orphan, "lvm": "LVM-abc", "shim": manifest.ShimPrefix + "x", "plain": ""} {
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
	if fine.State != manifest.Healthy || fine.Open != 3 || fine.Device != "/dev/mapper/fine" || fine.MajMin == "" || fine.Reason != "" {
		t.Errorf("%+v", fine)
	}
	if st := byName(t, all, "gone"); st.State != manifest.Releasing || st.Device != "" || st.Reason == "" {
		t.Errorf("%+v", st)
	}
	if st := byName(t, all, "paused"); st.State != manifest.Suspended || st.Reason == "" {
		t.Errorf("%+v", st)
	}
	if st := byName(t, all, "failed"); st.State != manifest.Failed || st.Reason != "moved" {
		t.Errorf("%+v", st)
	}
	if st := byName(t, all, "orphan"); st.State != manifest.Stale || st.Grade != string(pin.Unsafe) || !strings.Contains(st.Reason, "record") {
		t.Errorf("%+v", st)
	}
}

// A pin that the record has and the file has not.
func TestListSeesLostPins(t *testing.T) {
	w := newWorld(t)
	m := w.mapped(t, "image", manifest.Healthy)
	m.Pins, m.Grade = []manifest.Pin{{Kind: "immutable", Ours: true}}, "kernel"
	if err := w.store.Save(m); err != nil {
		t.Fatal(err)
	}
	st := byName(t, must(w.fresh().List(background(t), "image"))(t), "image")
	if st.State != manifest.Stale || st.Grade != "unsafe" || !strings.Contains(st.Reason, "immutable") || len(st.Pins) != 0 {
		t.Errorf("%+v", st)
	}
	m.Grade = "unsafe" // nothing is lost that the grade needed
	if err := w.store.Save(m); err != nil {
		t.Fatal(err)
	}
	if st := byName(t, must(w.fresh().List(background(t)))(t), "image"); st.State != manifest.Weakened {
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
	w.mapped(t, "fine", manifest.Healthy)
	w.mapped(t, "broken", manifest.Healthy)
	if err := os.WriteFile(filepath.Join(w.dir, "state", "broken.mapping"), []byte("junk\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := w.fresh().List(background(t))
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	if st := byName(t, all, "broken"); st.State != manifest.Stale || st.Reason == "" {
		t.Errorf("%+v", st)
	}
	if st := byName(t, all, "fine"); st.State != manifest.Healthy {
		t.Errorf("%+v", st)
	}
	if _, err := w.fresh().List(background(t), "broken"); err == nil {
		t.Error("asked for by name, it is no error")
	}
	verified, err := w.fresh().Verify(background(t))
	if err != nil || len(verified) != 2 {
		t.Fatalf("%+v, %v", verified, err)
	}
	for _, v := range verified {
		if v.Name == "broken" && v.State != manifest.Stale {
			t.Errorf("%+v", v)
		}
	}
}

// An answer that the kernel refuses is never shown as a healthy mapping.
func TestListWhenTheNthRequestFails(t *testing.T) {
	for n := 1; ; n++ {
		w := newWorld(t)
		w.mapped(t, "image", manifest.Healthy)
		w.kernel.FailNth(n, unix.EIO)
		all, err := w.fresh().List(background(t))
		if n > len(w.kernel.Calls()) {
			if n < 3 {
				t.Errorf("only %d requests", n)
			}
			return
		}
		if err == nil && byName(t, all, "image").State == manifest.Healthy && n == 1 {
			t.Errorf("request %d failed: %+v", n, all)
		}
	}
}
