package guardd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/internal/dm"
	"dmloop/internal/guardrpc"
	"dmloop/internal/image"
	"dmloop/internal/observe"
)

func TestTearDownAndRecord(t *testing.T) {
	r := newRig(t)
	c, _ := r.start()
	if err := os.Truncate(r.image, 4096); err != nil { // while the guard, which adopted it, watches
		t.Fatal(err)
	}
	r.await("the error table", r.tornDown)
	r.await("the record", func() bool { return r.record().State == guard.Failed })
	if m := r.record(); !strings.Contains(m.Reason, "4096 bytes, and had 65536 when it was mapped (resized)") {
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
	for policy, want := range map[guard.Policy]guard.State{guard.OnChangeSuspend: guard.Suspended, guard.OnChangeReport: guard.Stale} {
		t.Run(string(policy), func(t *testing.T) {
			r := newRig(t)
			r.policy(policy)
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

// The rows of an image within an image name the devices below both, so to suspend the
// outer mapping, or to report it, stops nothing of the inner one.
func TestInnerMappingOfOneThatIsDifferent(t *testing.T) {
	for policy, want := range map[guard.Policy]guard.State{guard.OnChangeSuspend: guard.Suspended, guard.OnChangeReport: guard.Stale} {
		t.Run(string(policy), func(t *testing.T) {
			r := newRig(t)
			inner := r.within(r.policy(policy))
			r.start()
			if r.table(inner.Name) != inner.Table.String() {
				t.Fatal("torn down without a reason")
			}
			if err := os.Truncate(r.image, 4096); err != nil {
				t.Fatal(err)
			}
			r.await("the outer record", func() bool { return r.record().State == want })
			r.await("the inner error table", func() bool { return strings.TrimSpace(r.table(inner.Name)) == torn })
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
	if s := r.record().State; s != guard.Healthy {
		t.Errorf("the record says %s although the lock is held", s)
	}
	if err := c.Drop(t.Context(), "vol"); err != nil {
		t.Fatal(err)
	}
	unlock()
	r.await("the record", func() bool { return r.record().State == guard.Failed })
}

func TestUnmapIsNoAlarm(t *testing.T) {
	r := newRig(t)
	c, _ := r.start()
	m := r.record()
	m.State = guard.Releasing
	r.save(m)
	if _, err := r.kernel.Conn().Remove(dm.ByUUID(uuid), dm.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if st, err := c.Check(t.Context(), "vol"); err != nil || st.State != guard.Healthy {
		t.Errorf("a device that unmap removes gives %+v, %v", st, err)
	}
	m.State = guard.Healthy
	r.save(m)
	if st, err := c.Check(t.Context(), "vol"); err != nil || st.State != guard.Failed {
		t.Errorf("a device that somebody removes gives %+v, %v", st, err)
	}
}

// A mapping whose end nobody told the guard of is forgotten, torn down before or not:
// it would keep the image open, and closed to others.
func TestForgetsWhatIsGone(t *testing.T) {
	for _, torn := range []bool{false, true} {
		r := newRig(t)
		r.idle = time.Second // for a heart that beats four times as often
		c, _ := r.start()
		if torn {
			if err := os.Truncate(r.image, 4096); err != nil {
				t.Fatal(err)
			}
			r.await("the record", func() bool { return r.record().State == guard.Failed })
		}
		if _, err := r.kernel.Conn().Remove(dm.ByUUID(uuid), dm.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := r.store.Delete("vol"); err != nil {
			t.Fatal(err)
		}
		r.await("the end of the watch", func() bool {
			st, err := c.Status(t.Context())
			return err == nil && len(st.Mappings) == 0
		})
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
	if s := r.record().State; s != guard.Failed {
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
	r.await("the record", func() bool { return r.record().State == guard.Failed })
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
	r.await("the reason, which is told after the deed", func() bool {
		st, err := c.Status(t.Context())
		return err == nil && strings.Contains(st.Mappings[0].Reason, "5 times in a row")
	})
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
	if _, err := c.Prepare(t.Context(), f, true); err != nil {
		t.Fatal(err)
	}
	r.add(c)
	if _, err := f.Seek(123, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	got, err := c.OpenImage(t.Context(), r.record().Image)
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
	if moved, err := c.OpenImage(t.Context(), r.record().Image); err != nil {
		t.Errorf("OpenImage of an image that was renamed: %v", err)
	} else {
		moved.Close()
	}
	var refused *guardrpc.Error
	stranger := r.record().Image
	stranger.Inode++
	if _, err := c.OpenImage(t.Context(), stranger); !errors.As(err, &refused) || refused.Kind != guardrpc.KindNotFound {
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
		if _, err := other.Prepare(t.Context(), f, true); err != nil {
			t.Fatal(err)
		}
		r.add(other)
		got, err := other.OpenImage(t.Context(), r.record().Image)
		if err != nil {
			t.Fatal(err)
		}
		got.Close()
		f.Close()
		other.Close()
	}
	// A check that is under way has descriptors of its own, for a moment.
	r.await("the end of all sessions", func() bool { return runtime.NumGoroutine() <= goroutines && count() <= descriptors })
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
	case <-time.After(time.Minute):
		t.Fatal("the guard does not end")
	}
}

// An idle guard does not end while it does what somebody asked for, and takes nothing on
// once it has made up its mind: what Prepare and Add promise then, nobody would keep.
func TestIdleGuardTakesNothingOn(t *testing.T) {
	long := time.Now().Add(-time.Hour)
	d := &Daemon{Config: Config{IdleExit: time.Minute}, busy: long}
	end, err := d.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if d.idle() {
		t.Error("idle with a request under way")
	}
	d.busy = long
	end()
	if d.idle() {
		t.Error("idle just after a request")
	}
	d.busy = long
	if !d.idle() {
		t.Error("not idle after an hour")
	}
	if _, err := d.Begin(); !errors.Is(err, guardrpc.ErrEnding) {
		t.Errorf("a request after the guard has decided to end: %v", err)
	}
}

func TestMetricsStayLocal(t *testing.T) {
	for _, where := range []string{"0.0.0.0:0", "192.0.2.1:80", "nonsense", "unix:"} {
		l, err := listenMetrics(where)
		if err == nil {
			l.Close()
		}
		if !errors.Is(err, ErrMetricsAddress) {
			t.Errorf("metrics on %s: %v", where, err)
		}
	}
	path := filepath.Join(t.TempDir(), "m.sock")
	for _, where := range []string{"127.0.0.1:0", "[::1]:0", "unix:" + path, "unix:" + path} {
		l, err := listenMetrics(where)
		if err != nil {
			t.Errorf("%s: %v", where, err)
			continue
		}
		if unixListener, ok := l.(*net.UnixListener); ok { // as a killed guard leaves it
			unixListener.SetUnlinkOnClose(false)
		}
		l.Close()
	}
	live, err := net.Listen("unix", filepath.Join(t.TempDir(), "live.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	for _, path := range []string{live.Addr().String(), file(t, "precious"), t.TempDir()} {
		if l, err := listenMetrics("unix:" + path); err == nil {
			l.Close()
			t.Errorf("metrics are served on %s", path)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("what was at %s is gone: %v", path, err)
		}
	}
}

// A guard that cannot serve its metrics has touched nothing before it says so.
func TestMetricsInTheWay(t *testing.T) {
	err := Run(t.Context(), Config{Dir: filepath.Join(t.TempDir(), "state"), Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Metrics: "unix:" + file(t, "precious")})
	if err == nil || !strings.Contains(err.Error(), "metrics") {
		t.Errorf("%v", err)
	}
}

func file(t *testing.T, text string) string {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
