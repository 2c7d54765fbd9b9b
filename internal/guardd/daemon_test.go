package guardd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
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
	"dmloop/internal/manifest"
	"dmloop/internal/observe"
)

// rig is a state folder, an image and a fake device-mapper with its mapping.
type rig struct {
	t      *testing.T
	dir    string
	image  string
	kernel *dmtest.Kernel
	store  *manifest.Store
	pace   guard.Pace
	idle   time.Duration
	log    strings.Builder
}

// never checks by itself within a test.
var never = guard.Pace{Tick: time.Hour, Bound: time.Hour, Share: 1}

const uuid = "DMLOOP-00000000000000000000000000000001-vol"

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, dir: filepath.Join(dir, "state"), image: filepath.Join(dir, "image"), kernel: dmtest.New(), pace: never}
	store, err := manifest.Open(r.dir, true)
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

// mapImage does what `map` does, as far as the guard sees it.
func (r *rig) mapImage() {
	r.t.Helper()
	conn := r.kernel.Conn()
	table := dmtable.Table{{Length: 128, Target: "linear", Args: "8:0 2048"}}
	live := func(name, uuid string, table dmtable.Table) dm.Info {
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
	below := dmtable.Table{{Length: 4096, Target: "linear", Args: "8:0 0"}}
	host := live("host", "LVM-x", below)
	own := live("vol", uuid, table)
	img, err := image.Open(r.image)
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
	r.save(manifest.Manifest{
		Name: "vol", UUID: uuid, Device: own.Device, State: manifest.Healthy, Guard: true, Unsafe: true, Grade: "unsafe",
		Image: manifest.Image{Path: r.image, Major: id.Major, Minor: id.Minor, Inode: id.Inode, Generation: id.Generation,
			Birth: id.Birth, Size: id.Size, Filesystem: "ext4"},
		Size: 64 << 10, Layout: layout.Clip().Merge(), Table: table, OnChange: "error",
		Base: manifest.Base{Device: host.Device, UUID: "LVM-x", Table: below.String()},
	})
}

func (r *rig) save(m manifest.Manifest) {
	r.t.Helper()
	if err := r.store.Save(m); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) record() manifest.Manifest {
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
	return Config{Dir: r.dir, Mapper: r.kernel.Conn(), Log: log, Pace: r.pace, IdleExit: r.idle}
}

func (r *rig) await(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	r.t.Fatalf("%s did not come within 5 s", what)
}

func (r *rig) add(c *guardrpc.Client) {
	r.t.Helper()
	if m, err := c.Add(r.t.Context(), "vol"); err != nil || m.State != guard.Healthy {
		r.t.Fatalf("Add: %+v, %v", m, err)
	}
}

const torn = "0 128 error"

func (r *rig) tornDown() bool { return strings.TrimSpace(r.table("vol")) == torn }

func TestTearDownAndRecord(t *testing.T) {
	r := newRig(t)
	c, _ := r.start()
	if err := os.Truncate(r.image, 4096); err != nil { // while the guard, which adopted it, watches
		t.Fatal(err)
	}
	r.await("the error table", r.tornDown)
	r.await("the record", func() bool { return r.record().State == manifest.Failed })
	if m := r.record(); !strings.Contains(m.Reason, "4096 bytes, mapped were 65536 (resized)") {
		t.Errorf("the reason is %q", m.Reason)
	}
	st, err := c.Status(t.Context())
	if err != nil || len(st.Mappings) != 1 || st.Mappings[0].State != guard.Failed {
		t.Errorf("Status: %+v, %v", st, err)
	}
	text, err := c.Metrics(t.Context())
	for _, want := range []string{
		`dmloop_guard_differences_total{reason="resized",state="failed"} 1`, `dmloop_guard_mappings{state="failed"} 1`,
		`dmloop_guard_denials_total{kind="open"} 0`, `dmloop_guard_check_seconds_count{full="true"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics lack %s: %v\n%s", want, err, text)
		}
	}
}

func TestPolicies(t *testing.T) {
	for policy, want := range map[string]manifest.State{"suspend": manifest.Suspended, "report": manifest.Stale} {
		t.Run(policy, func(t *testing.T) {
			r := newRig(t)
			m := r.record()
			m.OnChange = policy
			r.save(m)
			r.start()
			if err := os.Truncate(r.image, 4096); err != nil {
				t.Fatal(err)
			}
			r.await("the record", func() bool { return r.record().State == want })
			d, _ := r.kernel.Device("vol")
			if r.tornDown() || d.Suspended != (policy == "suspend") {
				t.Errorf("the device is %+v", d)
			}
		})
	}
}

// Map and unmap hold the store's lock while they wait for the guard.
func TestNothingWaitsForTheStoresLock(t *testing.T) {
	r := newRig(t)
	c, _ := r.start()
	unlock, err := r.store.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Drop(t.Context(), "vol"); err != nil {
		t.Fatal(err)
	}
	r.add(c)
	if err := os.Truncate(r.image, 4096); err != nil {
		t.Fatal(err)
	}
	r.await("the error table", r.tornDown)
	if s := r.record().State; s != manifest.Healthy {
		t.Errorf("the record says %s although the lock is held", s)
	}
	if err := c.Drop(t.Context(), "vol"); err != nil {
		t.Fatal(err)
	}
	unlock()
	r.await("the record", func() bool { return r.record().State == manifest.Failed })
}

func TestUnmapIsNoAlarm(t *testing.T) {
	r := newRig(t)
	c, _ := r.start()
	m := r.record()
	m.State = manifest.Releasing
	r.save(m)
	if _, err := r.kernel.Conn().Remove(dm.ByUUID(uuid), dm.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if st, err := c.Check(t.Context(), "vol"); err != nil || st.State != guard.Healthy {
		t.Errorf("a device that unmap removes gives %+v, %v", st, err)
	}
	m.State = manifest.Healthy
	r.save(m)
	if st, err := c.Check(t.Context(), "vol"); err != nil || st.State != guard.Failed {
		t.Errorf("a device that somebody removes gives %+v, %v", st, err)
	}
}

func TestTwoGuards(t *testing.T) {
	r := newRig(t)
	r.start()
	if err := Run(t.Context(), r.config()); !errors.Is(err, ErrRunning) {
		t.Errorf("a second guard: %v", err)
	}
}

func TestRestartLeavesAndAdopts(t *testing.T) {
	r := newRig(t)
	r.kernel.Calls() // forget what made the mapping
	for range 3 {
		c, stop := r.start()
		st, err := c.Status(t.Context())
		if err != nil || len(st.Mappings) != 1 || st.Mappings[0].State != guard.Healthy || st.Mappings[0].FullChecks != 1 {
			t.Fatalf("not adopted: %+v, %v", st, err)
		}
		stop()
	}
	for _, call := range r.kernel.Calls() {
		if call.Op == "DM_TABLE_LOAD" || call.Op == "DM_DEV_SUSPEND" {
			t.Errorf("a guard that only came and went called %+v", call)
		}
	}
	if err := os.Truncate(r.image, 4096); err != nil {
		t.Fatal(err)
	}
	_, stop := r.start()
	r.await("the error table", r.tornDown)
	stop()
	if s := r.record().State; s != manifest.Failed {
		t.Errorf("the record says %s after the guard's end", s)
	}
	reason := r.record().Reason
	c, _ := r.start()
	if st, err := c.Status(t.Context()); err != nil || len(st.Mappings) != 0 {
		t.Errorf("a torn-down mapping is watched: %+v, %v", st, err)
	}
	if r.record().Reason != reason {
		t.Errorf("the reason %q was replaced by %q", reason, r.record().Reason)
	}
}

// A guard that was killed between the tear-down and the record leaves an error
// table under a healthy record.
func TestAdoptsAKilledTearDown(t *testing.T) {
	r := newRig(t)
	if _, err := r.kernel.Conn().ReplaceNow(dm.ByUUID(uuid), dmtable.ErrorTable(128), 0); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.await("the record", func() bool { return r.record().State == manifest.Failed })
}

func TestAnImageThatCannotBeOpenedFailsClosedInTheEnd(t *testing.T) {
	r := newRig(t)
	r.pace = guard.Pace{Tick: 10 * time.Millisecond, Bound: time.Second, Share: 1}
	if err := os.Rename(r.image, r.image+".away"); err != nil {
		t.Fatal(err)
	}
	c, _ := r.start()
	if r.tornDown() {
		t.Error("torn down at the first failure")
	}
	r.await("the error table", r.tornDown)
	st, err := c.Status(t.Context())
	if err != nil || !strings.Contains(st.Mappings[0].Reason, "5 times in a row") {
		t.Errorf("Status: %+v, %v", st, err)
	}
}

func TestAdoptsAnImageThatMoved(t *testing.T) {
	r := newRig(t)
	m := r.record()
	img, err := image.Open(r.image)
	if err != nil {
		t.Fatal(err)
	}
	m.Image.Handle = observe.FileHandle(img)
	img.Close()
	r.save(m)
	if err := os.Rename(r.image, r.image+".away"); err != nil {
		t.Fatal(err)
	}
	c, stop := r.start()
	if st, err := c.Status(t.Context()); err != nil || st.Mappings[0].State != guard.Healthy || r.tornDown() {
		t.Errorf("renamed: %+v, %v", st, err)
	}
	stop()
	if err := os.Remove(r.image + ".away"); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.await("the error table", r.tornDown)
}

func TestAddRefusesWhatIsDifferent(t *testing.T) {
	r := newRig(t)
	c, _ := r.start()
	if err := c.Drop(t.Context(), "vol"); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(r.image, 4096); err != nil {
		t.Fatal(err)
	}
	var refused *guardrpc.Error
	if _, err := c.Add(t.Context(), "vol"); !errors.As(err, &refused) || refused.Kind != guardrpc.KindDifferent {
		t.Errorf("Add: %v", err)
	}
	if !r.tornDown() {
		t.Error("the mapping is live")
	}
	if _, err := c.Add(t.Context(), "other"); !errors.As(err, &refused) || refused.Kind != guardrpc.KindNotFound {
		t.Errorf("Add of an unknown name: %v", err)
	}
	if st, err := c.Status(t.Context()); err != nil || len(st.Mappings) != 0 {
		t.Errorf("Status: %+v, %v", st, err)
	}
}

func TestATearDownThatFailsIsTriedAgain(t *testing.T) {
	r := newRig(t)
	c, _ := r.start()
	r.kernel.SetVersion(3, 0, 0) // every ioctl fails with EINVAL
	if err := os.Truncate(r.image, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Check(t.Context(), "vol"); err != nil {
		t.Fatal(err)
	}
	if r.tornDown() {
		t.Fatal("torn down by a kernel that refuses")
	}
	r.kernel.SetVersion(4, 48, 0)
	r.await("the error table", r.tornDown)
}

func TestPreparedImageIsWatchedThroughTheSameDescription(t *testing.T) {
	r := newRig(t)
	c, _ := r.start()
	if err := c.Drop(t.Context(), "vol"); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(r.image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := c.Prepare(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	r.add(c)
	if _, err := f.Seek(123, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	got, err := c.OpenImage(t.Context(), r.image)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if pos, err := got.Seek(0, io.SeekCurrent); err != nil || pos != 123 {
		t.Errorf("the guard opened the image again: position %d, %v", pos, err)
	}
	if err := os.Rename(r.image, r.image+".away"); err != nil {
		t.Fatal(err)
	}
	if moved, err := c.OpenImage(t.Context(), r.image); err != nil {
		t.Errorf("OpenImage of an image that was renamed: %v", err)
	} else {
		moved.Close()
	}
	var refused *guardrpc.Error
	if _, err := c.OpenImage(t.Context(), r.dir); !errors.As(err, &refused) || refused.Kind != guardrpc.KindNotFound {
		t.Errorf("OpenImage of something else: %v", err)
	}
}

func TestNothingGrows(t *testing.T) {
	r := newRig(t)
	c, _ := r.start()
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	r.add(c)
	descriptors, goroutines := count(), runtime.NumGoroutine()
	for range 100 {
		f, err := os.Open(r.image)
		if err != nil {
			t.Fatal(err)
		}
		other, err := guardrpc.Dial(t.Context(), r.dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := other.Prepare(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		r.add(other)
		got, err := other.OpenImage(t.Context(), r.image)
		if err != nil {
			t.Fatal(err)
		}
		got.Close()
		f.Close()
		other.Close()
	}
	r.await("the end of all sessions", func() bool { return runtime.NumGoroutine() <= goroutines })
	if n := count(); n > descriptors {
		t.Errorf("%d descriptors, %d before", n, descriptors)
	}
}

func TestIdleGuardEnds(t *testing.T) {
	r := newRig(t)
	r.idle = 50 * time.Millisecond
	done := make(chan error, 1)
	go func() { done <- Run(context.Background(), r.config()) }()
	var c *guardrpc.Client
	r.await("the socket", func() bool {
		var err error
		c, err = guardrpc.Dial(t.Context(), r.dir)
		return err == nil
	})
	defer c.Close()
	select {
	case err := <-done:
		t.Fatalf("ended with a mapping: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := c.Drop(t.Context(), "vol"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the guard does not end")
	}
}

func TestMetricsStayLocal(t *testing.T) {
	for _, where := range []string{"0.0.0.0:0", "192.0.2.1:80", "nonsense"} {
		if l, err := listenMetrics(where); err == nil {
			l.Close()
			t.Errorf("metrics are served on %s", where)
		}
	}
	path := filepath.Join(t.TempDir(), "m.sock")
	for _, where := range []string{"127.0.0.1:0", "[::1]:0", "unix:" + path, "unix:" + path} {
		l, err := listenMetrics(where)
		if err != nil {
			t.Errorf("%s: %v", where, err)
			continue
		}
		defer l.Close()
	}
}
