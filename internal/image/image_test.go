package image

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dmloop/extents"

	"golang.org/x/sys/unix"
)

// newFile makes a regular file of size bytes.
func newFile(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image file.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func openImage(t *testing.T, path string) *Image {
	t.Helper()
	img, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

func TestOpenRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	fifo, socket := filepath.Join(dir, "fifo"), filepath.Join(dir, "socket")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for path, kind := range map[string]string{dir: "a directory", fifo: "a FIFO", socket: "a socket", "/dev/null": "a character device"} {
		done := make(chan error, 1)
		go func() { // a FIFO must not make it wait for a writer
			_, err := Open(path)
			done <- err
		}()
		select {
		case err := <-done:
			var p *extents.Refusal
			if !errors.As(err, &p) || p.Problems[0].Rule != extents.NotRegular || !strings.Contains(p.Problems[0].Message, kind) {
				t.Errorf("Open(%s) = %v, want not-regular because it is %s", path, err, kind)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("Open(%s) hangs", path)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink("loop", loop); err != nil {
		t.Fatal(err)
	}
	dangling := filepath.Join(dir, "dangling")
	if err := os.Symlink("nothing", dangling); err != nil {
		t.Fatal(err)
	}
	tests := map[string]error{
		filepath.Join(dir, "missing"): fs.ErrNotExist,
		dangling:                      fs.ErrNotExist,
		loop:                          unix.ELOOP,
		filepath.Join(dir, strings.Repeat("x", 300)): unix.ENAMETOOLONG,
		"": fs.ErrNotExist,
	}
	for path, want := range tests {
		_, err := Open(path)
		var p *fs.PathError
		if !errors.Is(err, want) || !errors.As(err, &p) || p.Path != path {
			t.Errorf("Open(%q) = %v, want a PathError with %v", path, err, want)
		}
	}
}

// A symbolic link is followed once; what it leads to later does not matter.
func TestOpenFollowsLinkOnce(t *testing.T) {
	path := newFile(t, 4096)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	img := openImage(t, link)
	before, err := img.Identity()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	if after, err := img.Identity(); err != nil || after != before {
		t.Errorf("identity changed with the link: %+v, was %+v (%v)", after, before, err)
	}
	if real, _ := filepath.EvalSymlinks(path); img.Path() != real {
		t.Errorf("Path() = %q, want %q", img.Path(), real)
	}
}

func TestAdopt(t *testing.T) {
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var p *extents.Refusal
	if _, err := Adopt(null); !errors.As(err, &p) || p.Problems[0].Rule != extents.NotRegular {
		t.Errorf("Adopt of a device: %v", err)
	}
	f, err := os.Open(newFile(t, 4096))
	if err != nil {
		t.Fatal(err)
	}
	img, err := Adopt(f)
	if err != nil || img.File() != f {
		t.Fatalf("Adopt of a file: %v", err)
	}
	if err := img.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Adopt(f); err == nil {
		t.Error("a closed file was adopted")
	}
}

func TestIdentity(t *testing.T) {
	path := newFile(t, 12345)
	first, err := openImage(t, path).Identity()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if first.Inode != st.Ino || first.Major != unix.Major(st.Dev) || first.Minor != unix.Minor(st.Dev) || first.Size != 12345 {
		t.Errorf("got %+v, stat says %+v", first, st)
	}
	other, err := openImage(t, newFile(t, 12345)).Identity()
	if err != nil || other == first {
		t.Errorf("two files have one identity: %+v, %v", other, err)
	}
}

func TestFactsOfAnyFile(t *testing.T) {
	path := newFile(t, 8192)
	facts, err := openImage(t, path).Facts()
	if err != nil {
		t.Fatal(err)
	}
	if facts.Size != 8192 || facts.Links != 1 || facts.BlockSize <= 0 || facts.Filesystem == "" || facts.Swap.Active {
		t.Errorf("got %+v", facts)
	}
}

func TestFactsNameForeignFileSystems(t *testing.T) {
	facts, err := openImage(t, "/proc/self/status").Facts()
	if err != nil {
		t.Fatal(err)
	}
	problems := facts.Problems(0, 4096)
	for _, p := range problems {
		if p.Rule == extents.UnsupportedFS && strings.Contains(p.Message, "proc") {
			return
		}
	}
	t.Errorf("no problem names proc: %v", problems)
}

func TestCacheCounts(t *testing.T) {
	const pages = 64
	page := os.Getpagesize()
	path := newFile(t, 0)
	if err := os.WriteFile(path, make([]byte, pages*page), 0o600); err != nil {
		t.Fatal(err)
	}
	img := openImage(t, path)
	state, err := img.DropCache(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if state.Cached != 0 {
		return // a file system in memory has nowhere else to keep its pages
	}
	if _, err := img.File().ReadAt(make([]byte, page), 0); err != nil {
		t.Fatal(err)
	}
	state, err = img.CacheState(t.Context())
	if err != nil || state.Cached == 0 || !state.Clean() && state.Exact {
		t.Errorf("after reading a page: %+v, %v", state, err)
	}
	counted, err := img.mincore(t.Context())
	if err != nil || counted != state.Cached {
		t.Errorf("mincore counts %d pages (%v), cachestat %d", counted, err, state.Cached)
	}
}

// Pages are counted where the file has data, and the end of the context ends it.
func TestMincoreOfASparseFile(t *testing.T) {
	const size = 1 << 40
	path := newFile(t, size)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{0, size / 2, size - 5000} {
		if _, err := f.WriteAt(make([]byte, 5000), at); err != nil {
			t.Fatal(err)
		}
	}
	img := openImage(t, path)
	state, err := img.CacheState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	counted, err := img.mincore(t.Context())
	if err != nil || counted == 0 || state.Exact && counted != state.Cached {
		t.Errorf("mincore counts %d pages (%v), cachestat %+v", counted, err, state)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := img.mincore(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of its context: %v", err)
	}
}

func TestCacheStateJudges(t *testing.T) {
	tests := []struct {
		state CacheState
		clean bool
	}{
		{CacheState{Exact: true}, true},
		{CacheState{Cached: 9, Exact: true}, true},
		{CacheState{Cached: 9, Dirty: 1, Exact: true}, false},
		{CacheState{Cached: 9, Writeback: 1, Exact: true}, false},
		{CacheState{}, true},
		{CacheState{Cached: 1}, false},
	}
	for _, tt := range tests {
		problems := tt.state.Problems()
		if tt.state.Clean() != tt.clean || (len(problems) == 0) != tt.clean {
			t.Errorf("%+v: clean %v, problems %v", tt.state, tt.state.Clean(), problems)
		}
		for _, p := range problems {
			if p.Rule != extents.DirtyCache {
				t.Errorf("%+v: %v", tt.state, p)
			}
		}
	}
}
