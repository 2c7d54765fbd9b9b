package guardd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/dm"
	"dmloop/internal/dm/dmtest"
	"dmloop/internal/guardrpc"
	"dmloop/internal/image"
	"dmloop/internal/record"
)

// rig is a state directory, an image and a fake device-mapper with its mapping.
type rig struct {
	t      *testing.T
	dir    string
	image  string
	kernel *dmtest.Kernel
	store  *record.Store
	pace   guard.Pace
	idle   time.Duration
	finish func(context.Context) error
}

// never checks by itself within a test.
var never = guard.Pace{Tick: time.Hour, Bound: time.Hour, Share: 1}

const uuid = "DMLOOP-00000000000000000000000000000001-vol"

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, dir: filepath.Join(dir, "state"), image: filepath.Join(dir, "image"), kernel: dmtest.New(), pace: never}
	store, err := record.Open(r.dir, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	r.store = store
	f, err := os.Create(r.image)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(make([]byte, 64<<10))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	r.mapImage()
	return r
}

// live makes a device with a live table.
func (r *rig) live(name, uuid string, table dmtable.Table) dm.Info {
	r.t.Helper()
	conn := r.kernel.Conn()
	_, err := conn.Create(name, uuid)
	if err == nil {
		_, err = conn.Load(dm.ByName(name), table, false)
	}
	var info dm.Info
	if err == nil {
		info, err = conn.Resume(dm.ByName(name), dm.ResumeOptions{})
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return info
}

// readImage returns what a record says of the file at path.
func (r *rig) readImage(path string) (image.Identity, extents.Layout) {
	r.t.Helper()
	img, err := image.Open(path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer img.Close()
	id, err := img.Identity()
	if err != nil {
		r.t.Fatal(err)
	}
	layout, err := extents.Read(img.File())
	if err != nil {
		r.t.Fatal(err)
	}
	return id, layout.Clip().Merge()
}

// mapImage does what `map` does, as far as the guard sees it.
func (r *rig) mapImage() {
	r.t.Helper()
	table := dmtable.Table{{Length: 128, Target: "linear", Args: "8:0 2048"}}
	below := dmtable.Table{{Length: 4096, Target: "linear", Args: "8:0 0"}}
	host := r.live("host", "LVM-x", below)
	own := r.live("vol", uuid, table)
	id, layout := r.readImage(r.image)
	r.save(record.Record{
		Name: "vol", UUID: uuid, Device: own.Device, State: guard.Healthy, Guard: true, Unsafe: true, Grade: "unsafe",
		Image: record.Image{Path: r.image, FileID: id.FileID, Size: id.Size, Filesystem: "ext4"},
		Size:  64 << 10, Layout: layout, Table: table, OnChange: "error",
		Base: record.Base{Device: host.Device, UUID: "LVM-x", Table: below.String()},
	})
}

// within maps an image that lies on a file system inside the mapping outer.
func (r *rig) within(outer record.Record) record.Record {
	r.t.Helper()
	path := filepath.Join(filepath.Dir(r.image), "inner")
	if err := os.WriteFile(path, make([]byte, 64<<10), 0o600); err != nil {
		r.t.Fatal(err)
	}
	id, layout := r.readImage(path)
	m := outer
	m.Name, m.UUID, m.OnChange = "inner", "DMLOOP-00000000000000000000000000000002-inner", "error"
	m.Image.Path, m.Image.Inode, m.Image.Generation, m.Image.Birth = path, id.Inode, id.Generation, id.Birth
	m.Layout = layout
	m.Base = record.Base{Device: outer.Device, Name: outer.Name, UUID: outer.UUID, Table: outer.Table.String()}
	m.Device = r.live(m.Name, m.UUID, m.Table).Device
	r.save(m)
	return m
}

func (r *rig) save(m record.Record) {
	r.t.Helper()
	if err := r.store.Save(m); err != nil {
		r.t.Fatal(err)
	}
}

// policy gives the mapping another policy and returns its record.
func (r *rig) policy(onChange guard.Policy) record.Record {
	r.t.Helper()
	m := r.record()
	m.OnChange = onChange
	r.save(m)
	return m
}

func (r *rig) record() record.Record {
	r.t.Helper()
	m, err := r.store.Load("vol")
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// table returns the live table of a device.
func (r *rig) table(name string) string {
	d, ok := r.kernel.Device(name)
	if !ok {
		return "no device"
	}
	return d.Active.String()
}

// start runs a guard until stop is called or the test ends.
func (r *rig) start() (c *guardrpc.Client, stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, r.config()) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
		done <- nil
	}
	r.t.Cleanup(stop)
	r.await("the guard's socket", func() bool {
		var err error
		c, err = guardrpc.Dial(context.Background(), r.dir)
		return err == nil
	})
	r.t.Cleanup(func() { c.Close() })
	return c, stop
}

func (r *rig) config() Config {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	c := Config{Dir: r.dir, Mapper: r.kernel.Conn(), Log: log, Pace: r.pace, IdleExit: r.idle, releaseSoon: 50 * time.Millisecond}
	if r.finish != nil {
		c.Finish = func(ctx context.Context, _ *Own) error { return r.finish(ctx) }
	}
	return c
}

func (r *rig) await(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	r.t.Fatalf("%s did not come within a minute", what)
}

func (r *rig) add(c *guardrpc.Client) {
	r.t.Helper()
	if m, err := c.Add(r.t.Context(), "vol"); err != nil || m.State != guard.Healthy {
		r.t.Fatalf("Add: %+v, %v", m, err)
	}
}

const torn = "0 128 error"

func (r *rig) tornDown() bool { return strings.TrimSpace(r.table("vol")) == torn }
