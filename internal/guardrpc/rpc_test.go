package guardrpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/guard"
	"dmloop/internal/record"
)

// fakeHandler answers like a guard that watches one mapping, "vol".
type fakeHandler struct {
	mu       sync.Mutex
	image    *os.File     // what Open gives
	opened   record.Image // the image that Open was asked for
	prepared []*os.File
	closed   []int
	wait     chan struct{} // Check waits for it
	began    chan struct{} // Metrics says that it is under way, and waits for another one
	ending   chan struct{} // no request is taken; closed by the first one
}

func (h *fakeHandler) Connected(*Session) {}

func (h *fakeHandler) Begin() (end func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ending != nil {
		close(h.ending)
		return nil, ErrEnding
	}
	return func() {}, nil
}

func (h *fakeHandler) Prepare(_ context.Context, _ *Session, f *os.File, _ bool) (Prepared, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.prepared = append(h.prepared, f)
	return Prepared{Denies: No, Why: "fake"}, nil
}

func (h *fakeHandler) Add(_ context.Context, _ *Session, name string) (MappingState, error) {
	if name != "vol" {
		return MappingState{}, Errorf(KindNotFound, "%s: no such mapping", name)
	}
	return MappingState{Name: name, State: guard.Healthy, FullInterval: time.Second}, nil
}

func (h *fakeHandler) Drop(context.Context, string) error { return nil }

func (h *fakeHandler) Grow(context.Context, string) error { return nil }

func (h *fakeHandler) Open(_ context.Context, want record.Image) (*os.File, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opened = want
	fd, err := unix.FcntlInt(h.image.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	return os.NewFile(uintptr(fd), h.image.Name()), err
}

func (h *fakeHandler) Record(_ context.Context, name string) (record.Record, error) {
	if name != "vol" {
		return record.Record{}, Errorf(KindNotFound, "%s is not watched", name)
	}
	return record.Record{Name: "vol", State: guard.Healthy, Parts: []record.Part{{Name: "volp1", Number: 1}},
		Image: record.Image{FileID: guard.FileID{Inode: 1 << 62}, FSUUID: "a"}}, nil
}

func (h *fakeHandler) Status(context.Context) (Status, error) {
	return Status{PID: 1, Denies: Yes, Mappings: make([]MappingState, 3000)}, nil // more than one read takes
}

func (h *fakeHandler) Check(ctx context.Context, _ string) (MappingState, error) {
	select {
	case <-h.wait:
	case <-ctx.Done():
	}
	return MappingState{}, errors.New("plain error")
}

func (h *fakeHandler) Metrics(context.Context) (string, error) {
	if h.began != nil {
		h.began <- struct{}{}
		<-h.began
	}
	return "# HELP x\n", nil
}

func (h *fakeHandler) Closed(s *Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = append(h.closed, s.PID)
}

// serve runs a server until the test ends and fails it when descriptors are left.
func serve(t *testing.T) (dir string, h *fakeHandler) {
	t.Helper()
	before := openDescriptors(t)
	dir = t.TempDir()
	h = &fakeHandler{wait: make(chan struct{})}
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- Serve(ctx, l, h, slog.New(slog.NewTextHandler(io.Discard, nil))) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		for _, f := range h.prepared {
			f.Close()
		}
		if h.image != nil {
			h.image.Close()
		}
		if after := openDescriptors(t); len(after) > len(before) {
			t.Errorf("descriptors %q, %q before", after, before)
		}
	})
	return dir, h
}

// openDescriptors lists what this process has open, except for what Go's poller opens
// with the first socket and for the list itself.
func openDescriptors(t *testing.T) (targets []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(target, "anon_inode") {
			targets = append(targets, target)
		}
	}
	return targets
}

func dial(t *testing.T, dir string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestCalls(t *testing.T) {
	dir, h := serve(t)
	c := dial(t, dir)
	ctx := t.Context()
	path := filepath.Join(dir, "image")
	if m, err := c.Record(t.Context(), "vol"); err != nil || m.Name != "vol" || m.State != guard.Healthy || m.Image.Inode != 1<<62 || len(m.Parts) != 1 {
		t.Errorf("record: %+v, %v", m, err)
	}
	var unknown *Error
	if _, err := c.Record(t.Context(), "other"); !errors.As(err, &unknown) || unknown.Kind != KindNotFound {
		t.Errorf("record of another: %v", err)
	}
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	h.image = f
	h.mu.Unlock()
	p, err := c.Prepare(ctx, f, true)
	if err != nil || p != (Prepared{Denies: No, Why: "fake"}) {
		t.Errorf("Prepare: %+v, %v", p, err)
	}
	h.mu.Lock()
	if h.prepared[0].Name() != path {
		t.Errorf("the guard calls the descriptor %q", h.prepared[0].Name())
	}
	h.mu.Unlock()
	if m, err := c.Add(ctx, "vol"); err != nil || m.State != guard.Healthy || m.FullInterval != time.Second {
		t.Errorf("Add: %+v, %v", m, err)
	}
	var refused *Error
	if _, err := c.Add(ctx, "other"); !errors.As(err, &refused) || refused.Kind != KindNotFound {
		t.Errorf("Add of an unknown name: %v", err)
	}
	if err := c.Drop(ctx, "vol"); err != nil {
		t.Errorf("Drop: %v", err)
	}
	got, err := c.OpenImage(ctx, imageOf(t, path))
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if b, err := io.ReadAll(io.NewSectionReader(got, 0, 100)); err != nil || string(b) != "content" || got.Name() != path {
		t.Errorf("OpenImage: %q, %v, %s", b, err, got.Name())
	}
	if flags, err := unix.FcntlInt(got.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the descriptor would be inherited: %#x, %v", flags, err)
	}
	if st, err := c.Status(ctx); err != nil || st.PID != 1 || len(st.Mappings) != 3000 {
		t.Errorf("Status: %d mappings, %v", len(st.Mappings), err)
	}
	if text, err := c.Metrics(ctx); err != nil || text != "# HELP x\n" {
		t.Errorf("Metrics: %q, %v", text, err)
	}
	close(h.wait)
	if _, err := c.Check(ctx, "vol"); !errors.As(err, &refused) || refused.Kind != KindFailed || refused.Message != "plain error" {
		t.Errorf("Check: %v", err)
	}
}

// The guard is asked for an inode, and its descriptor is taken only when it is one of
// that inode, wherever the path leads to.
func TestOpenImageIsTheInodeThatWasAskedFor(t *testing.T) {
	dir, h := serve(t)
	c := dial(t, dir)
	work := t.TempDir()
	var images []record.Image
	for _, name := range []string{"a", "b"} {
		path := filepath.Join(work, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		images = append(images, imageOf(t, path))
	}
	f, err := os.Open(images[1].Path)
	if err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	h.image = f
	h.mu.Unlock()
	moved := images[1]
	moved.Path = images[0].Path
	for _, tt := range []struct {
		asked record.Image
		want  bool
	}{{images[0], false}, {images[1], true}, {moved, true}} {
		got, err := c.OpenImage(t.Context(), tt.asked)
		var refused *Error
		switch {
		case tt.want && err != nil, !tt.want && (!errors.As(err, &refused) || refused.Kind != KindNotFound):
			t.Errorf("%+v: %v", tt.asked, err)
		case tt.want:
			got.Close()
		}
		h.mu.Lock()
		if o := h.opened; o.Inode != tt.asked.Inode || o.Device() != tt.asked.Device() {
			t.Errorf("for %+v the guard was asked for %+v", tt.asked, o)
		}
		h.mu.Unlock()
	}
}

// imageOf returns the record's part that says which inode the file at path is.
func imageOf(t *testing.T, path string) record.Image {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return record.Image{Path: path, FileID: guard.FileID{Inode: st.Ino, Major: unix.Major(st.Dev), Minor: unix.Minor(st.Dev)}}
}

func TestDialWithoutGuard(t *testing.T) {
	dir := t.TempDir()
	if _, err := Dial(t.Context(), dir); !errors.Is(err, ErrNoGuard) {
		t.Errorf("no socket: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, SocketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := Dial(t.Context(), dir); !errors.Is(err, ErrNoGuard) {
		t.Errorf("a dead guard's socket: %v", err)
	}
	if l, err := Listen(dir); err != nil {
		t.Errorf("Listen over a dead guard's socket: %v", err)
	} else {
		l.Close()
	}
}

func TestCallTimesOut(t *testing.T) {
	dir, _ := serve(t)
	c := dial(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := c.Check(ctx, "vol"); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) > time.Minute {
		t.Errorf("a wedged guard: %v after %s", err, time.Since(start))
	}
	if err := c.Drop(t.Context(), "vol"); err == nil {
		t.Error("the connection is used again after a time-out")
	}
}

func TestSessionEndsWithItsConnection(t *testing.T) {
	dir, h := serve(t)
	c := dial(t, dir)
	if err := c.Drop(t.Context(), "vol"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		h.mu.Lock()
		closed := len(h.closed) == 1 && h.closed[0] == os.Getpid()
		h.mu.Unlock()
		if closed {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the session was not closed")
		}
	}
}

func TestServerCutsOffNonsense(t *testing.T) {
	dir, _ := serve(t)
	for name, text := range map[string]string{
		"not JSON": "hello\n",
		"too long": strings.Repeat("x", requestLimit+8192),
	} {
		c := dial(t, dir)
		c.c.SetDeadline(time.Now().Add(time.Minute))
		c.c.Write([]byte(text))
		if n, err := c.c.Read(make([]byte, 10)); err == nil {
			t.Errorf("%s: an answer of %d bytes", name, n)
		}
	}
	c := dial(t, dir)
	var refused *Error
	if _, _, err := c.call(t.Context(), request{Op: "dance"}, nil); !errors.As(err, &refused) || !strings.Contains(refused.Message, "dance") {
		t.Errorf("an unknown request: %v", err)
	}
	if _, _, err := c.call(t.Context(), request{Op: opPrepare}, nil); !errors.As(err, &refused) {
		t.Errorf("prepare without a descriptor: %v", err)
	}
	// A descriptor where none belongs is closed, and one beside nonsense too: serve
	// counts them.
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, _, err := c.call(t.Context(), request{Op: opDrop, Name: "vol"}, f); err != nil {
		t.Errorf("drop with a descriptor: %v", err)
	}
	for range 2 {
		rights := unix.UnixRights(int(f.Fd()), int(f.Fd()), int(f.Fd()), int(f.Fd()), int(f.Fd()))
		c.c.WriteMsgUnix([]byte("{"), rights, nil)
	}
	c.c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := c.c.Read(make([]byte, 10)); err == nil {
		t.Error("five descriptors at once are accepted")
	}
}
