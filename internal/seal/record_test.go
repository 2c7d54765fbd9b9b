package seal

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"testing"

	"dmloop/extents"
)

var sample = Record{
	Phase: PhaseSealed, PageSize: 4096, Prologue: 12288, Payload: 9216, Moved: 28672,
	UUID: [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
}

// The bytes of docs/sealed-format.md: a change here is a new format version.
const sampleHex = "444d4c505345414c" + "01000000" + "01000000" + "00100000" + "03000000" +
	"0024000000000000" + "0070000000000000" + "00b0000000000000" +
	"000102030405060708090a0b0c0d0e0f" + "00000000" +
	"0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000" +
	"4f29f1ab"

func TestRecordBytes(t *testing.T) {
	if got := hex.EncodeToString(sample.Encode()); got != sampleHex {
		t.Errorf("encoded record is\n%s, want\n%s", got, sampleHex)
	}
	got, err := Decode(sample.Encode())
	if err != nil || got != sample {
		t.Errorf("decoded %+v, %v", got, err)
	}
}

// Beside the flag nothing of the record changes; a flag that is not known may mean anything.
func TestWrittenFlag(t *testing.T) {
	written := sample
	written.Written = true
	b, plain := written.Encode(), sample.Encode()
	if got, err := Decode(b); err != nil || got != written {
		t.Errorf("decoded %+v, %v", got, err)
	}
	if b[68] != 1 || !bytes.Equal(b[:68], plain[:68]) || !bytes.Equal(b[69:RecordSize-4], plain[69:RecordSize-4]) {
		t.Errorf("%x", b)
	}
	if !written.place(sample) {
		t.Error("it names other places")
	}
}

func TestDecodeRefuses(t *testing.T) {
	le := binary.LittleEndian
	for _, c := range []struct {
		name string
		edit func(b []byte)
	}{
		{"version", func(b []byte) { le.PutUint32(b[8:], 2) }},
		{"phase 0", func(b []byte) { le.PutUint32(b[12:], 0) }},
		{"phase 4", func(b []byte) { le.PutUint32(b[12:], 4) }},
		{"page of 2 KiB", func(b []byte) { le.PutUint32(b[16:], 2048) }},
		{"page of 128 KiB", func(b []byte) { le.PutUint32(b[16:], 128<<10) }},
		{"page of 5000", func(b []byte) { le.PutUint32(b[16:], 5000) }},
		{"page of 0", func(b []byte) { le.PutUint32(b[16:], 0) }},
		{"prologue of a page", func(b []byte) { le.PutUint32(b[20:], 1) }},
		{"prologue beyond 1 MiB", func(b []byte) { le.PutUint32(b[20:], 257) }},
		{"prologue of 2^32-1 pages", func(b []byte) { le.PutUint32(b[20:], 1<<32-1) }},
		{"payload 0", func(b []byte) { le.PutUint64(b[24:], 0) }},
		{"payload off the sector", func(b []byte) { le.PutUint64(b[24:], 9217) }},
		{"payload negative", func(b []byte) { le.PutUint64(b[24:], 1<<63) }},
		{"payload beyond the moved pages", func(b []byte) { le.PutUint64(b[24:], 29184) }},
		{"moved pages inside the prologue", func(b []byte) { le.PutUint64(b[32:], 8192) }},
		{"moved pages further out", func(b []byte) { le.PutUint64(b[32:], 32768) }},
		{"moved pages at 2^63", func(b []byte) { le.PutUint64(b[32:], 1<<63) }},
		{"another size", func(b []byte) { le.PutUint64(b[40:], 45055) }},
		{"content checksum of a sealed image", func(b []byte) { le.PutUint32(b[64:], 1) }},
		{"unknown flag", func(b []byte) { b[68] = 3 }},
		{"unknown flag, high", func(b []byte) { b[71] = 0x80 }},
		{"first reserved byte", func(b []byte) { b[72] = 1 }},
		{"reserved byte", func(b []byte) { b[123] = 1 }},
	} {
		b := sample.Encode()
		c.edit(b)
		if _, err := Decode(b); err == nil {
			t.Errorf("%s with the old checksum: no error", c.name)
		}
		le.PutUint32(b[RecordSize-4:], checksum(b[:RecordSize-4]))
		if got, err := Decode(b); err == nil || errors.Is(err, ErrNoRecord) {
			t.Errorf("%s: %+v, error %v", c.name, got, err)
		}
	}
	for i := range RecordSize {
		b := sample.Encode()
		b[i] ^= 1
		if _, err := Decode(b); err == nil || errors.Is(err, ErrNoRecord) != (i < len(magic)) {
			t.Errorf("bit 0 of byte %d flipped: error %v", i, err)
		}
		if _, err := Decode(sample.Encode()[:i]); err == nil {
			t.Errorf("record of %d bytes: no error", i)
		}
	}
}

func TestHeaderPage(t *testing.T) {
	for size := extents.Bytes(minPageSize); size <= maxPageSize; size *= 2 {
		r := newRecord(10*size, 2*size, size, sample.UUID)
		p := HeaderPage(r)
		want := r
		want.Phase = PhaseSealed
		if got, err := DecodePage(p); err != nil || got != want {
			t.Errorf("page of %d bytes: %+v, %v", size, got, err)
		}
		if len(p) != int(size) || string(p[size-10:]) != "SWAPSPACE2" || string(p[1052:1058]) != "dmloop" {
			t.Errorf("page of %d bytes is %q", size, p)
		}
		for _, off := range []int{RecordSize, 1023, 1024, 1028, 1032, int(size) - 10, int(size) - 1} {
			bad := bytes.Clone(p)
			bad[off] ^= 4
			if _, err := DecodePage(bad); err == nil {
				t.Errorf("page of %d bytes with byte %d changed: no error", size, off)
			}
		}
		if _, err := DecodePage(p[:size-1]); err == nil {
			t.Errorf("page cut at %d: no error", size-1)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(sample.Encode())
	f.Add(HeaderPage(sample))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(b)
		if err == nil && !bytes.Equal(r.Encode(), b[:RecordSize]) {
			t.Errorf("%x decodes to %+v, which encodes to %x", b, r, r.Encode())
		}
		if len(b) >= RecordSize { // past the checksum
			b = bytes.Clone(b)
			copy(b, magic[:])
			binary.LittleEndian.PutUint32(b[RecordSize-4:], checksum(b[:RecordSize-4]))
			if r, err := Decode(b); err == nil && (r.Size() <= r.Payload || r.Kept() > r.Payload || r.Moved < r.Prologue) {
				t.Errorf("record %+v", r)
			}
		}
		if r, err := DecodePage(b); err == nil && r.Phase != PhaseSealed {
			t.Errorf("page decodes to %+v", r)
		}
	})
}
