package watch

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"dmloop/dmtable"
)

// heard collects hints.
type heard struct {
	mu    sync.Mutex
	lines []string
}

func (h *heard) add(line string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, line)
}

func (h *heard) Touched(key, event string) { h.add(key + ": " + event) }
func (h *heard) Lost(key, why string)      { h.add("lost " + key + ": " + why) }

// await waits until each of wants is in a line, and forgets all lines.
func (h *heard) await(t *testing.T, wants ...string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		h.mu.Lock()
		text := strings.Join(h.lines, "\n")
		if !slices.ContainsFunc(wants, func(want string) bool { return !strings.Contains(text, want) }) {
			h.lines = nil
			h.mu.Unlock()
			return
		}
		h.mu.Unlock()
		if time.Now().After(end) {
			t.Fatalf("%q was not heard in a minute, but:\n%s", wants, text)
		}
	}
}

func (h *heard) silent(t *testing.T) {
	t.Helper()
	time.Sleep(20 * time.Millisecond)
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.lines) > 0 {
		t.Fatalf("heard %q", h.lines)
	}
}

func image(t *testing.T, path string) *os.File {
	t.Helper()
	if err := os.WriteFile(path, []byte("image"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestFiles(t *testing.T) {
	var h heard
	w, err := NewFiles(&h)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	fa, fb := image(t, a), image(t, b)
	for key, f := range map[string]*os.File{"A": fa, "B": fb} {
		if err := w.Watch(key, f, f.Name()); err != nil && !errors.Is(err, ErrOpensUntold) { // which guests test
			t.Fatal(err)
		}
	}
	h.silent(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(dir, "other"), nil, 0o600))
	h.silent(t)
	must(os.Truncate(a, 3))
	h.await(t, "A: modify")
	must(os.Chmod(b, 0o400))
	h.await(t, "B: attrib")
	must(os.Rename(a, a+".old"))
	h.await(t, "A: renamed", "A: directory: renamed")
	must(os.Truncate(a+".old", 2)) // whoever is renamed is still watched
	h.await(t, "A: modify")
	must(os.Rename(filepath.Join(dir, "other"), b))
	h.await(t, "B: directory: created")
	must(os.Rename(dir, dir+".moved"))
	h.await(t, "A: directory: renamed", "B: directory: renamed")
	must(os.Remove(filepath.Join(dir+".moved", "a.old")))
	h.await(t, "A: attrib")
	must(os.Rename(filepath.Join(dir+".moved", "b"), filepath.Join(dir+".moved", "a")))
	h.await(t, "A: directory: created", "B: directory: renamed")
	w.Forget("A")
	w.Forget("A")
	must(os.WriteFile(filepath.Join(dir+".moved", "a.old"), nil, 0o600))
	must(os.Remove(filepath.Join(dir+".moved", "a.old")))
	h.silent(t)
	if len(w.dirs) != 1 {
		t.Errorf("%d directories watched, B's is one", len(w.dirs))
	}
	w.Forget("B")
	if len(w.dirs)+len(w.images)+len(w.keys)+len(w.changes.WatchList()) != 0 {
		t.Errorf("left behind: %v %v %v %v", w.dirs, w.images, w.keys, w.changes.WatchList())
	}
}

func TestFilesTellsOfLostWatches(t *testing.T) {
	var h heard
	w, err := NewFiles(&h)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	dir := t.TempDir()
	f := image(t, filepath.Join(dir, "a"))
	if err := w.Watch("A", f, f.Name()); err != nil && !errors.Is(err, ErrOpensUntold) {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	h.await(t, "A: directory: removed")
	w.changes.Errors <- fsnotify.ErrEventOverflow
	h.await(t, "lost : the inotify queue overflowed")
}

func TestFilesNamesTheMissingDirectory(t *testing.T) {
	var h heard
	w, err := NewFiles(&h)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f := image(t, filepath.Join(t.TempDir(), "a"))
	err = w.Watch("A", f, "/nonexistent/a")
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/") {
		t.Fatalf("got %v", err)
	}
	if err := os.Truncate(f.Name(), 1); err != nil {
		t.Fatal(err)
	}
	h.silent(t)
}

// Of many messages in a row the first are taken at once, and the others many at a time.
func TestPollerRests(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	fd, err := unix.Dup(int(r.Fd()))
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int64
	buf := make([]byte, 64<<10)
	p, err := newPoller(fd, unix.POLLIN, func() bool {
		calls.Add(1)
		unix.Read(fd, buf)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	begin, sent := time.Now(), 0
	for ; time.Since(begin) < time.Second; sent++ {
		if _, err := w.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	most := eagerly + int64(time.Since(begin)/rest) + 1
	if got := calls.Load(); got > most || got == 0 {
		t.Errorf("%d calls for %d messages in %s", got, sent, time.Since(begin))
	}
}

func TestParseUevent(t *testing.T) {
	join := func(fields ...string) string { return strings.Join(fields, "\x00") + "\x00" }
	tests := map[string]struct {
		message string
		dev     dmtable.Device
		action  string
		ok      bool
	}{
		"change": {join("change@/devices/virtual/block/dm-3", "ACTION=change", "DEVPATH=/devices/virtual/block/dm-3", "SUBSYSTEM=block",
			"DM_COOKIE=4194304", "MAJOR=253", "MINOR=3", "DEVNAME=dm-3"), dmtable.Device{Major: 253, Minor: 3}, "change", true},
		"remove":      {join("remove@/x", "ACTION=remove", "MAJOR=8", "MINOR=0", "SUBSYSTEM=block"), dmtable.Device{Major: 8}, "remove", true},
		"not a block": {join("add@/x", "ACTION=add", "SUBSYSTEM=net", "MAJOR=8", "MINOR=0"), dmtable.Device{Major: 8}, "add", false},
		"no minor":    {join("add@/x", "ACTION=add", "SUBSYSTEM=block", "MAJOR=8"), dmtable.Device{Major: 8}, "add", false},
		"bad number":  {join("add@/x", "ACTION=add", "SUBSYSTEM=block", "MAJOR=8", "MINOR=x"), dmtable.Device{Major: 8}, "add", false},
		"empty":       {},
		"udev's own":  {"libudev\x00\xfe\xed\xca\xfe", dmtable.Device{}, "", false},
	}
	for name, test := range tests {
		dev, action, ok := parseUevent([]byte(test.message))
		if dev != test.dev || action != test.action || ok != test.ok {
			t.Errorf("%s: %v %q %v", name, dev, action, ok)
		}
	}
}

func FuzzParseUevent(f *testing.F) {
	f.Add([]byte("change@/x\x00ACTION=change\x00SUBSYSTEM=block\x00MAJOR=253\x00MINOR=3\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, action, ok := parseUevent(b); ok && action == "" {
			t.Error("an event without an action")
		}
	})
}

// fanotifyEvent is one event as the kernel writes it, about a handle of a file system.
func fanotifyEvent(mask uint64, info ...byte) []byte {
	e := binary.NativeEndian.AppendUint32(nil, uint32(eventSize+len(info)))
	e = append(e, unix.FANOTIFY_METADATA_VERSION, 0)
	e = binary.NativeEndian.AppendUint16(e, eventSize)
	e = binary.NativeEndian.AppendUint64(e, mask)
	e = binary.NativeEndian.AppendUint32(e, ^uint32(0)) // no descriptor
	e = binary.NativeEndian.AppendUint32(e, 4711)
	return append(e, info...)
}

func fidInfo(handle ...byte) []byte {
	i := binary.NativeEndian.AppendUint16([]byte{unix.FAN_EVENT_INFO_TYPE_FID, 0}, uint16(20+len(handle)))
	for _, n := range []uint32{7, 8, uint32(len(handle)), 1} { // two of the file system's id, the handle's length and type
		i = binary.NativeEndian.AppendUint32(i, n)
	}
	return append(i, handle...)
}

// Events of one file are one, others are told apart, and what is not understood counts as lost.
func TestParseOpens(t *testing.T) {
	one, other := handleText([2]int32{7, 8}, 1, []byte("abcd")), handleText([2]int32{7, 8}, 1, []byte("efgh"))
	events := slices.Concat(fanotifyEvent(unix.FAN_OPEN, fidInfo([]byte("abcd")...)...), fanotifyEvent(unix.FAN_CLOSE_WRITE, fidInfo([]byte("efgh")...)...),
		fanotifyEvent(unix.FAN_CLOSE_NOWRITE, fidInfo([]byte("abcd")...)...))
	seen, lost := parseOpens(events)
	if lost || len(seen) != 2 || openText(seen[one]) != "open close" || openText(seen[other]) != "close-write" {
		t.Errorf("%v, lost %v", seen, lost)
	}
	if _, lost := parseOpens(append(events, fanotifyEvent(unix.FAN_Q_OVERFLOW)...)); !lost {
		t.Error("an overflow was not noticed")
	}
	wrong := fidInfo([]byte("abcd")...)
	binary.NativeEndian.PutUint32(wrong[12:], 1<<31-1) // a handle that is longer than its record
	for name, event := range map[string][]byte{"a long handle": fanotifyEvent(unix.FAN_OPEN, wrong...), "a record of nothing": fanotifyEvent(unix.FAN_OPEN, 1, 0, 0, 0)} {
		if _, lost := parseOpens(event); !lost {
			t.Errorf("%s was understood", name)
		}
	}
}

func FuzzParseOpens(f *testing.F) {
	f.Add(fanotifyEvent(unix.FAN_OPEN, fidInfo(1, 2, 3, 4)...))
	f.Add(fanotifyEvent(unix.FAN_Q_OVERFLOW))
	f.Fuzz(func(_ *testing.T, b []byte) { parseOpens(b) })
}

func TestFolderTellsRenames(t *testing.T) {
	dir := t.TempDir()
	changed := make(chan string, 10)
	removed := make(chan struct{}, 10)
	f, err := NewFolder(dir, func(name string) { changed <- name }, func() { removed <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"one", "two"} {
		temp := filepath.Join(dir, ".new")
		if err := os.WriteFile(temp, []byte(name), 0o600); err != nil { // not told: it is only written
			t.Fatal(err)
		}
		if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-changed:
			if got != name {
				t.Errorf("told %q, not %q", got, name)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s was not told", name)
		}
	}
	if err := os.Remove(filepath.Join(dir, "one")); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-changed:
		t.Errorf("told %q, which was removed", got)
	case <-removed:
	case <-time.After(5 * time.Second):
		t.Error("a removal was not told")
	}
	if _, err := NewFolder(filepath.Join(dir, "two"), nil, nil); err == nil {
		t.Error("a file is no folder")
	}
}

// Who talks to the guard from a PID namespace that the guard does not see has the number
// 0, as everybody else there: his leave is not theirs.
func TestGateAllowsNobodyOutOfSight(t *testing.T) {
	g := &Gate{allowed: map[int]int{}}
	revoke := g.Allow(0)
	defer revoke()
	if g.isAllowed(0) {
		t.Error("whoever is out of sight may open marked files")
	}
	revokeOne := g.Allow(4711)
	if !g.isAllowed(4711) {
		t.Error("a process that was given leave is refused")
	}
	revokeOne()
	if g.isAllowed(4711) {
		t.Error("the leave was not taken back")
	}
}
