package seal

import (
	"io"
	"os"

	"dmloop/extents"
)

// ReaderOf returns what reads the content of a sealed image as its device would show it, from the
// disk, as Inspect does: the page cache is neither believed nor filled. Nobody else may read by
// the same open file at the same time.
func ReaderOf(f *os.File, r Record) io.ReaderAt { return reader{newFileStore(f), r} }

type reader struct {
	file fileStore
	seal Record
}

// ReadAt implements io.ReaderAt.
func (r reader) ReadAt(p []byte, off int64) (int, error) {
	got := 0
	for got < len(p) {
		at, n := extents.Bytes(off)+extents.Bytes(got), extents.Bytes(len(p)-got)
		switch {
		case at < r.seal.Kept():
			at, n = r.seal.Moved+at, min(n, r.seal.Kept()-at)
		case at < r.seal.Payload:
			n = min(n, r.seal.Payload-at)
		default:
			return got, io.EOF
		}
		b, err := r.file.read(at, n)
		got += copy(p[got:], b)
		if err != nil {
			return got, err
		}
		if extents.Bytes(len(b)) < n {
			return got, io.EOF
		}
	}
	return got, nil
}
