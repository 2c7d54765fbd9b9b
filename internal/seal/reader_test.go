package seal

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"dmloop/extents"
)

// Of a sealed image the reader shows what the device would.
func TestReader(t *testing.T) {
	content := make([]byte, 300<<10)
	for i := range content {
		content[i] = byte(i>>8 ^ i)
	}
	r := Record{Payload: extents.Bytes(len(content)), Prologue: 8192, Moved: extents.Bytes(len(content)), PageSize: 4096}
	sealed := bytes.Clone(content)
	copy(sealed, make([]byte, r.Prologue))
	sealed = append(sealed, content[:r.Prologue]...)
	sealed = append(sealed, make([]byte, 4096)...)
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, sealed, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []struct{ off, n int }{{0, 100}, {0, 40 << 10}, {8000, 400}, {8191, 2}, {8192, 10}, {100, 8192}, {len(content) - 8, 8}, {0, len(content)}} {
		b := make([]byte, at.n)
		n, err := ReaderOf(f, r).ReadAt(b, int64(at.off))
		if err != nil || n != at.n || !bytes.Equal(b, content[at.off:at.off+at.n]) {
			t.Errorf("%d bytes at %d: %d, %v", at.n, at.off, n, err)
		}
	}
	b := make([]byte, 100)
	if n, err := ReaderOf(f, r).ReadAt(b, int64(len(content)-60)); n != 60 || !errors.Is(err, io.EOF) {
		t.Errorf("beyond the end: %d, %v", n, err)
	}
}
