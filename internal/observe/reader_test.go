package observe

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/dm"
	"dmloop/internal/image"
	"dmloop/internal/record"
)

// fakeMapper answers with what the record says.
type fakeMapper struct {
	own, host dm.Info
	hostTable dmtable.Table
	table     dmtable.Table
	gone      bool
}

func (f *fakeMapper) Info(dm.Ref) (dm.Info, error) {
	if f.gone {
		return dm.Info{}, dm.ErrNotFound
	}
	return f.own, nil
}
func (f *fakeMapper) State(dm.Ref) (dm.Info, dmtable.Table, error) { return f.host, f.hostTable, nil }
func (f *fakeMapper) Deps(dm.Ref) ([]dmtable.Device, error)        { return nil, nil }
func (f *fakeMapper) TableLike(ref dm.Ref, _ dmtable.Table) (dmtable.Table, error) {
	return f.Table(ref)
}
func (f *fakeMapper) Table(dm.Ref) (dmtable.Table, error) {
	if f.gone {
		return nil, dm.ErrNotFound
	}
	return f.table, nil
}

// mapped makes an image, and a reader and the record of a mapping of it.
func mapped(t testing.TB) (*Reader, *fakeMapper) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	img, err := image.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	id, err := img.Identity()
	if err != nil {
		t.Fatal(err)
	}
	layout, err := extents.Read(img.File())
	if err != nil {
		t.Fatal(err)
	}
	host := dmtable.Device{Major: 253, Minor: 1}
	m := &fakeMapper{
		own: dm.Info{UUID: "DMLOOP-x"}, host: dm.Info{UUID: "LVM-x", Device: host},
		hostTable: dmtable.Table{{Length: 4096, Target: "linear", Args: "8:0 0"}},
		table:     dmtable.Table{{Length: 128, Target: "linear", Args: "8:0 2048"}},
	}
	return &Reader{Mapper: m, Image: img, Leases: true, Record: record.Record{
		Name: "vol", UUID: "DMLOOP-x", Grade: "unsafe",
		Image:  record.Image{Path: path, FileID: id.FileID, Size: id.Size, Filesystem: "ext4", Handle: FileHandle(img)},
		Layout: layout.Clip().Merge(), Table: m.table,
		Base: record.Base{Device: host, UUID: "LVM-x", Table: m.hostTable.String()},
	}}, m
}

func TestReaderFindsWhatWasRecorded(t *testing.T) {
	r, _ := mapped(t)
	o := r.Full(t.Context(), r.Quick(t.Context(), true))
	if findings := guard.Check(Expect(r.Record), o); len(findings) > 0 {
		t.Errorf("findings: %v", findings)
	}
	for part, done := range map[string]bool{"identity": o.Identity.Done, "pins": o.Pins.Done, "openers": o.Openers.Done,
		"base": o.Base.Done, "own": o.Own.Done, "own table": o.OwnTable.Done, "layout": o.Layout.Done} {
		if !done {
			t.Errorf("the %s was not read", part)
		}
	}
}

func TestReaderSeesOpeners(t *testing.T) {
	r, _ := mapped(t)
	for _, c := range []struct {
		flags int
		want  guard.Openers
	}{{os.O_RDONLY, guard.Readers}, {os.O_RDWR, guard.Writers}, {os.O_WRONLY, guard.Writers}} {
		f, err := os.OpenFile(r.Record.Image.Path, c.flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		if o := r.Quick(t.Context(), true); o.Openers.Value != c.want {
			t.Errorf("opened with %d: %d, want %d", c.flags, o.Openers.Value, c.want)
		}
		f.Close()
		if o := r.Quick(t.Context(), true); o.Openers.Value != guard.Alone {
			t.Errorf("closed again: %d", o.Openers.Value)
		}
	}
}

func TestReaderLeavesASuspendedHostAlone(t *testing.T) {
	r, m := mapped(t)
	m.host.Suspended = true
	o := r.Full(t.Context(), r.Quick(t.Context(), true))
	if !o.Base.Value.Suspended || o.Identity.Done || o.Pins.Done || o.Layout.Done {
		t.Errorf("read from a suspended host: %+v", o)
	}
}

func TestReaderTellsUnmapFromRemoval(t *testing.T) {
	r, m := mapped(t)
	m.gone = true
	if o := r.Quick(context.Background(), true); !o.Own.Value.Gone {
		t.Error("a device that somebody removed is not gone")
	}
	r.Leaving = func() bool { return true }
	if o := r.Quick(context.Background(), true); o.Own.Done || o.Base.Done {
		t.Errorf("an unmap under way is judged: %+v", o)
	}
}

func TestExpectRefusesNothingByAnUnknownPolicy(t *testing.T) {
	r, _ := mapped(t)
	r.Record.OnChange = "shrug"
	if p := Expect(r.Record).Policy; p != guard.OnChangeError {
		t.Errorf("policy %q", p)
	}
}

func TestOpen(t *testing.T) {
	r, _ := mapped(t)
	want := r.Record.Image
	check := func(what string, wantErr error) {
		t.Helper()
		img, err := Open(want, (*image.Found).Open)
		if wantErr != nil {
			if err == nil || err != wantErr {
				t.Errorf("%s: %v", what, err)
			}
			return
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		if id, _ := img.Identity(); id.Inode != want.Inode {
			t.Errorf("%s: inode %d", what, id.Inode)
		}
		img.Close()
	}
	check("by path", nil)
	if os.Geteuid() != 0 {
		return // handles are root's
	}
	if err := os.Rename(want.Path, want.Path+".away"); err != nil {
		t.Fatal(err)
	}
	check("renamed", nil)
	if err := os.WriteFile(want.Path, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("replaced", nil)
	r.Image.Close()
	if err := os.Remove(want.Path + ".away"); err != nil {
		t.Fatal(err)
	}
	check("deleted", ErrImageGone)
}

func BenchmarkQuick(b *testing.B) {
	r, _ := mapped(b)
	want := Expect(r.Record)
	for b.Loop() {
		if f := guard.Check(want, r.Quick(context.Background(), true)); len(f) > 0 {
			b.Fatal(f)
		}
	}
}

func BenchmarkFull(b *testing.B) {
	r, _ := mapped(b)
	want := Expect(r.Record)
	for b.Loop() {
		if f := guard.Check(want, r.Full(context.Background(), r.Quick(context.Background(), true))); len(f) > 0 {
			b.Fatal(f)
		}
	}
}

// A proof counts as long as leases do not say otherwise, and one that is granted now counts
// whatever was recorded.
func TestProof(t *testing.T) {
	for _, c := range []struct {
		recorded bool
		openers  guard.Reading[guard.Openers]
		want     bool
	}{
		{true, guard.Reading[guard.Openers]{}, true},
		{false, guard.Reading[guard.Openers]{}, false},
		{true, guard.Read(guard.Untold, nil), true},
		{false, guard.Read(guard.Untold, nil), false},
		{false, guard.Read(guard.Alone, nil), true},
		{false, guard.Read(guard.Readers, nil), true},
		{true, guard.Read(guard.Writers, nil), false},
		{false, guard.Read(guard.Writers, nil), false},
		{true, guard.Read(guard.Alone, os.ErrInvalid), true},
	} {
		if got := proof(c.recorded, c.openers); got != c.want {
			t.Errorf("recorded %v, openers %+v: %v", c.recorded, c.openers, got)
		}
	}
}
