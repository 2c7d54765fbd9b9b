package activate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dmloop/internal/blockdev"
	"dmloop/internal/fault"
	"dmloop/internal/lifecycle"
	"dmloop/internal/survey"
	"dmloop/internal/tab"
)

// fake records what it is asked, and how many entries are worked on at a time.
type fake struct {
	mu          sync.Mutex
	calls       []string
	open, most  int
	fail        map[string]error
	optionsSeen lifecycle.MapOptions
}

func (f *fake) call(text, name string) error {
	f.mu.Lock()
	f.calls = append(f.calls, text+" "+name)
	f.open++
	f.most = max(f.most, f.open)
	f.mu.Unlock()
	time.Sleep(2 * time.Millisecond)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open--
	return f.fail[name]
}

func (f *fake) EnsureShim(_ context.Context, path, name string) (string, bool, error) {
	return "/dev/mapper/" + name, true, f.call("shim", name)
}

func (f *fake) EnsureMapped(_ context.Context, path string, o lifecycle.MapOptions) (lifecycle.Status, bool, error) {
	f.mu.Lock()
	f.optionsSeen = o
	f.mu.Unlock()
	return lifecycle.Status{Device: "/dev/mapper/" + o.Name}, false, f.call("map", o.Name)
}
func (f *fake) RemoveShim(_ context.Context, name string) error { return f.call("unshim", name) }
func (f *fake) Unmap(_ context.Context, name string, _ lifecycle.UnmapOptions) error {
	return f.call("unmap", name)
}
func (f *fake) Close() error { return nil }

// runner has one disk, /dev/disk of a made-up machine.
func runner(t *testing.T, f *fake, jobs int) (Runner, string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "class/block"), 0o755); err != nil {
		t.Fatal(err)
	}
	return Runner{Open: func() System { return f }, Devices: blockdev.Finder{Sys: dir, Dev: dir}, Log: slog.New(slog.DiscardHandler), Jobs: jobs}, dir
}

func parse(t *testing.T, text string) tab.Table {
	t.Helper()
	table, err := tab.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestActivateTellsOfMissingDevices(t *testing.T) {
	f := &fake{}
	r, _ := runner(t, f, 4)
	res := r.Activate(t.Context(), parse(t, "a /a.img\ns UUID=12 - shim\nb /b.img"))
	if fault.ClassOf(res[1].Err) != fault.NotFound || res[0].Err != nil || res[2].Device != "/dev/mapper/b" {
		t.Errorf("%+v", res)
	}
	slices.Sort(f.calls)
	if !slices.Equal(f.calls, []string{"map a", "map b"}) {
		t.Errorf("%q", f.calls)
	}
}

func TestDeactivateImagesBeforeShims(t *testing.T) {
	f := &fake{fail: map[string]error{
		"a": &fault.Error{Class: fault.NotFound},
		"b": &fault.Error{Class: fault.Busy, Message: "in use"},
	}}
	r, _ := runner(t, f, 1)
	res := r.Deactivate(t.Context(), parse(t, "s UUID=12 - shim\na /a.img\nb /b.img"))
	if res[0].Err != nil || res[1].Err != nil || fault.ClassOf(res[2].Err) != fault.Busy {
		t.Errorf("%+v", res)
	}
	if len(f.calls) != 3 || f.calls[2] != "unshim s" {
		t.Errorf("%q", f.calls)
	}
}

func TestActivateInParallel(t *testing.T) {
	f := &fake{}
	r, _ := runner(t, f, 5)
	text := ""
	for i := range 50 {
		text += fmt.Sprintf("n%d /x%d\n", i, i)
	}
	res := r.Activate(t.Context(), parse(t, text))
	for i, one := range res {
		if one.Err != nil || one.Entry.Name != fmt.Sprintf("n%d", i) {
			t.Errorf("%d: %+v", i, one)
		}
	}
	if f.most < 2 || f.most > 5 {
		t.Errorf("%d at a time", f.most)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if res := r.Activate(ctx, parse(t, "a /a")); !errors.Is(res[0].Err, context.Canceled) {
		t.Errorf("%+v", res)
	}
}

func TestOptions(t *testing.T) {
	f := &fake{}
	r, _ := runner(t, f, 1)
	r.Activate(t.Context(), parse(t, "a /a 0f1e2d3c4b5a69788796a5b4c3d2e1f0 ro,pin=swap,on-change=report,udev-rules=all,offset=1K,sizelimit=2K,partscan,no-guard,unsafe,max-extents=9"))
	want := lifecycle.MapOptions{Name: "a", UUID: "0f1e2d3c4b5a69788796a5b4c3d2e1f0", ReadOnly: true, Pin: "swap", OnChange: "report", UdevRules: "all",
		NoGuard: true, Unsafe: true, PartScan: true, Options: survey.Options{
			Window: survey.Window{Offset: 1024, Limit: 2048}, MaxExtents: 9, Unattended: true}}
	if f.optionsSeen != want {
		t.Errorf("%+v", f.optionsSeen)
	}
}

func TestSelection(t *testing.T) {
	table := parse(t, "a /a\nb /b - noauto\ns UUID=12 - shim,noauto,x-initrd.attach")
	names := func(entries []tab.Entry) (all []string) {
		for _, e := range entries {
			all = append(all, e.Name)
		}
		return all
	}
	if got := names(Auto(table, false)); !slices.Equal(got, []string{"a"}) {
		t.Errorf("%q", got)
	}
	if got := names(Auto(table, true)); !slices.Equal(got, []string{"s"}) {
		t.Errorf("%q", got)
	}
	if got, err := Select(table, []string{"b", "a"}); err != nil || !slices.Equal(names(got), []string{"b", "a"}) {
		t.Errorf("%v %v", got, err)
	}
	if _, err := Select(table, []string{"x"}); fault.ClassOf(err) != fault.NotFound {
		t.Error(err)
	}
}

// An image that takes long is said to; one that does not, and a shim, are not.
func TestSlowImagesAreTold(t *testing.T) {
	for _, c := range []struct {
		slow time.Duration
		kind tab.Kind
		want bool
	}{{time.Nanosecond, tab.Image, true}, {time.Nanosecond, tab.Shim, false}, {time.Hour, tab.Image, false}, {0, tab.Image, false}} {
		var log lockedText
		f := &fake{}
		r := Runner{Open: func() System { return f }, Log: slog.New(slog.NewTextHandler(&log, nil)), Jobs: 1, Slow: c.slow}
		r.Deactivate(t.Context(), []tab.Entry{{Label: "data", Name: "data", Kind: c.kind, Source: "/srv/data.img"}})
		if got := strings.Contains(log.String(), "still at work"); got != c.want {
			t.Errorf("%+v: %q", c, log.String())
		}
	}
}

// lockedText collects what several goroutines write.
type lockedText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
