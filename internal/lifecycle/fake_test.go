package lifecycle

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/dm"
	"dmloop/internal/dm/dmtest"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/observe"
	"dmloop/internal/record"
)

// world is a System on a device-mapper in memory and a state directory of its own.
// Image files are real; nothing of them is ever pinned here.
type world struct {
	*System
	kernel *dmtest.Kernel
	store  *record.Store
	dir    string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	store, err := record.Open(filepath.Join(dir, "state"), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	k := dmtest.New()
	w := &world{kernel: k, store: store, dir: dir}
	w.System = w.fresh()
	for _, device := range []string{"8:1", "254:0"} { // disks on which the images lie
		folder := filepath.Join(dir, "sys/dev/block", device)
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"size": "4194304", "ro": "0", "uevent": "DEVNAME=sda1"} {
			if err := os.WriteFile(filepath.Join(folder, name), []byte(text+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return w
}

// fresh is the System of the next command.
func (w *world) fresh() *System {
	s := NewSystem(filepath.Join(w.dir, "state"), slog.New(slog.NewTextHandler(io.Discard, nil)))
	s.sysfs = filepath.Join(w.dir, "sys")
	s.patience.removal, s.patience.held = 50*time.Millisecond, 50*time.Millisecond
	return s.WithConn(w.kernel.Conn())
}

// mapped makes an image, its device and its record, as map leaves them.
func (w *world) mapped(t *testing.T, name string, state guard.State) record.Record {
	t.Helper()
	path := filepath.Join(w.dir, name+".img")
	if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := image.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	id, err := img.Identity()
	if err != nil {
		t.Fatal(err)
	}
	uuid, err := record.NewUUID(name, "")
	if err != nil {
		t.Fatal(err)
	}
	m := record.Record{
		Name: name, UUID: uuid, State: state, Size: 8192, Extents: 1, Grade: "unsafe", OnChange: "error",
		Image:   record.Image{Path: img.Path(), FileID: id.FileID, Size: id.Size, Filesystem: "ext4", Handle: observe.FileHandle(img)},
		Created: time.Now().UTC(),
		Layout:  extents.Layout{Size: 8192, Extents: []extents.Extent{{Physical: 1 << 20, Length: 8192}}},
		Table:   dmtable.Table{{Length: 16, Target: dmtable.Linear, Args: "8:1 2048"}},
	}
	conn := w.kernel.Conn()
	info, err := conn.Create(name, uuid)
	if err != nil {
		t.Fatal(err)
	}
	m.Device = info.Device
	if _, err := conn.Load(dm.ByUUID(uuid), m.Table, false); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Resume(dm.ByUUID(uuid), dm.ResumeOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.store.Save(m); err != nil {
		t.Fatal(err)
	}
	w.kernel.Calls()
	return m
}

// accounted fails the test unless every device has a record.
func (w *world) accounted(t *testing.T, what string) (records int) {
	t.Helper()
	names, err := w.store.Names()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, n := range names {
		m, err := w.store.Load(n)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		known[m.UUID] = true
		for _, p := range m.Parts {
			known[mapper.PartUUID(p.Number, m.UUID)] = true
		}
	}
	conn := w.kernel.Conn()
	list, err := conn.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		if info, err := conn.Info(dm.ByDevice(d.Device)); err != nil || !known[info.UUID] {
			t.Errorf("%s: device %s has no record (%v)", what, d.Name, err)
		}
	}
	return len(names)
}
