package backing

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"dmloop/extents"
	"dmloop/internal/image"

	"golang.org/x/sys/unix"
)

// provisionAt is Provision of what is at path.
func provisionAt(ctx context.Context, path string, opts Options) (Report, error) {
	found, err := image.Find(path)
	if err != nil {
		return Report{}, err
	}
	defer found.Close()
	return Provision(ctx, found, opts)
}

// sparseFile makes a file with holes, unwritten parts and data, and returns its path
// and its content.
func sparseFile(t *testing.T, dir string, size int64) (string, []byte) {
	t.Helper()
	path := filepath.Join(dir, "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, size/4, size/4); err != nil {
		t.Fatal(err)
	}
	content := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	for at := int64(0); at+4096 <= size; at += 7 * 65536 {
		random.Read(content[at : at+4096])
		if _, err := f.WriteAt(content[at:at+4096], at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return path, content
}

func sameContent(t *testing.T, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the content of %s changed (%d bytes, were %d; %v)", path, len(got), len(want), err)
	}
}

func TestProvision(t *testing.T) {
	dir, ok := mappableDir(t)
	if !ok {
		return
	}
	path, content := sparseFile(t, dir, 8<<20)
	var last [2]extents.Bytes
	report, err := provisionAt(context.Background(), path, Options{Progress: func(done, total extents.Bytes) { last = [2]extents.Bytes{done, total} }})
	if err != nil || report.Holes == 0 || report.Unwritten == 0 || report.Rounds != 1 {
		t.Errorf("got %+v, %v", report, err)
	}
	if last[0] != last[1] || last[0] != report.Holes+report.Unwritten {
		t.Errorf("progress ended at %v, the report is %+v", last, report)
	}
	sameContent(t, path, content)
	if report, err := provisionAt(context.Background(), path, Options{}); err != nil || report != (Report{}) {
		t.Errorf("a second time: %+v, %v", report, err)
	}
	// The lease is given back and O_DIRECT with the descriptor.
	img, err := image.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if _, err := image.AwaitSoleOpener(t.Context(), img.File(), image.Wait{}); err != nil {
		t.Error(err)
	}
}

func TestProvisionCancelled(t *testing.T) {
	dir, ok := mappableDir(t)
	if !ok {
		return
	}
	path, content := sparseFile(t, dir, 8*chunkSize)
	ctx, cancel := context.WithCancel(context.Background())
	_, err := provisionAt(ctx, path, Options{Progress: func(done, _ extents.Bytes) {
		if done > 0 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	sameContent(t, path, content)
	if _, err := provisionAt(context.Background(), path, Options{}); err != nil {
		t.Errorf("going on: %v", err)
	}
	sameContent(t, path, content)
}

func TestProvisionRefuses(t *testing.T) {
	dir, ok := mappableDir(t)
	if !ok {
		return
	}
	odd := filepath.Join(dir, "odd")
	if err := os.WriteFile(odd, []byte("some bytes"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, rule := range map[string]extents.Rule{odd: extents.SizeUnaligned, empty: extents.Empty} {
		if _, err := provisionAt(context.Background(), path, Options{}); !hasProblem(err, rule) {
			t.Errorf("%s: %v, want %s", path, err, rule)
		}
	}
	sameContent(t, odd, []byte("some bytes"))
	if _, err := provisionAt(context.Background(), filepath.Join(dir, "missing"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := provisionAt(context.Background(), dir, Options{}); !isRule(err, extents.NotRegular) {
		t.Errorf("directory: %v", err)
	}
}

func isRule(err error, rule extents.Rule) bool {
	var p *extents.Refusal
	return errors.As(err, &p) && p.Problems[0].Rule == rule
}

func TestProvisionLeavesOpenFilesAlone(t *testing.T) {
	dir, ok := mappableDir(t)
	if !ok {
		return
	}
	path, content := sparseFile(t, dir, 1<<20)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before, err := extents.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provisionAt(context.Background(), path, Options{}); !isRule(err, extents.OpenElsewhere) {
		t.Errorf("open elsewhere: %v", err)
	}
	sameContent(t, path, content)
	if after, err := extents.Read(f); err != nil || !after.Equal(before) {
		t.Errorf("the layout changed: %s, %v", extents.Diff(before, after), err)
	}
}

// Somebody opens the file while it is being repaired: the work stops at once, so
// that he need not wait for the kernel to take the lease away (45 s).
func TestProvisionStopsForOthers(t *testing.T) {
	dir, ok := mappableDir(t)
	if !ok {
		return
	}
	path, content := sparseFile(t, dir, 32*chunkSize)
	opened := make(chan error, 1)
	asked := false
	_, err := provisionAt(context.Background(), path, Options{Progress: func(done, _ extents.Bytes) {
		if !asked && done > 0 {
			asked = true
			// Without O_NONBLOCK it waits; with it, it breaks the lease and fails.
			_, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			opened <- err
		}
	}})
	if err := <-opened; !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("the other open: %v", err)
	}
	if !isRule(err, extents.OpenElsewhere) {
		t.Errorf("Provision: %v", err)
	}
	sameContent(t, path, content)
}

// TestDataIsNeverZeroed gives the writer stretches that are no holes, as a kernel
// that lies would.
func TestDataIsNeverZeroed(t *testing.T) {
	dir, ok := mappableDir(t)
	if !ok {
		return
	}
	path, content := sparseFile(t, dir, 4*chunkSize)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := newWriter(f, writeMode{}, func() error { return nil }, func(extents.Bytes) {})
	if err != nil {
		t.Fatal(err)
	}
	everything := []stretch{{0, extents.Bytes(len(content))}}
	if err := w.zero(context.Background(), everything); !errors.Is(err, ErrNotZero) {
		t.Errorf("zero: %v", err)
	}
	if left, err := w.zeroByDisk(context.Background(), everything); !errors.Is(err, ErrNotZero) {
		t.Errorf("zeroByDisk: %v, %v", left, err)
	}
	if err := w.rewrite(context.Background(), everything); err != nil {
		t.Errorf("rewrite: %v", err)
	}
	if err := w.close(); err != nil {
		t.Error(err)
	}
	sameContent(t, path, content)
}
