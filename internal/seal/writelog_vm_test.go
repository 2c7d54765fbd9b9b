//go:build vmtest

package seal

import (
	"encoding/binary"
	"os"
	"testing"

	"dmloop/internal/vmtest"
)

// logEntry is one write that dm-log-writes recorded (struct log_write_entry in
// drivers/md/dm-log-writes.c): first what was complete when a flush began, in any
// order, then the flush. Writes that are durable when they are complete stand at
// once.
type logEntry struct {
	at    int64 // byte offset on the device
	data  []byte
	flush bool // what stands before is durable
	fua   bool // this is durable itself
	mark  string
}

// readLog reads the log of a dm-log-writes device up to the mark named end:
//
//	super block: __le64 magic, version, nr_entries; __le32 sectorsize;
//	entry:       __le64 sector, nr_sectors, flags, data_len;
//
// each at the beginning of a sector, an entry's data after it and a mark's text
// in the sector of its entry.
func readLog(t *testing.T, dev, end string) []logEntry {
	t.Helper()
	const magic, flush, fua, discard, mark = 0x6a736677736872, 1, 2, 4, 8
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	pos := int64(0)
	next := func(n int) []byte {
		b := make([]byte, n)
		if _, err := f.ReadAt(b, pos); err != nil {
			t.Fatal(err)
		}
		pos += int64(n)
		return b
	}
	le := binary.LittleEndian
	block := next(512)
	if le.Uint64(block) != magic || le.Uint64(block[8:]) != 1 || le.Uint32(block[24:]) != 512 {
		t.Fatalf("no log on %s: %x", dev, block[:32])
	}
	var out []logEntry
	for range le.Uint64(block[16:]) {
		b := next(512)
		e := logEntry{at: int64(le.Uint64(b)) * 512}
		n, flags := int(le.Uint64(b[8:])), le.Uint64(b[16:])
		e.flush, e.fua = flags&flush != 0, flags&fua != 0
		switch {
		case flags&mark != 0:
			e.mark = string(b[32 : 32+le.Uint64(b[24:])])
			if e.mark == end {
				return out
			}
		case flags&discard == 0:
			e.data = next(n * 512)
		}
		out = append(out, e)
	}
	t.Fatalf("the log has no mark %q", end)
	return nil
}

// writeEntry repeats a write on a device; keep tells which of its sectors.
func writeEntry(t *testing.T, f *os.File, e logEntry, keep func(i int) bool) {
	t.Helper()
	for i := 0; i*512 < len(e.data); i++ {
		if keep(i) {
			if _, err := f.WriteAt(e.data[i*512:(i+1)*512], e.at+int64(i)*512); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// cowStore makes a loop device on a sparse file to keep a snapshot's changes.
func cowStore(t *testing.T, name string) string {
	t.Helper()
	path := t.TempDir() + "/" + name
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 512<<20); err != nil {
		t.Fatal(err)
	}
	dev := vmtest.Must(t, "losetup", "-f", "--show", path)
	dev = dev[:len(dev)-1]
	t.Cleanup(func() { vmtest.Must(t, "losetup", "-d", dev) })
	return dev
}
