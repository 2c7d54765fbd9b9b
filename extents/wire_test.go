package extents

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"
)

// encodeReply does the kernel's part: it puts rows behind the request in buf, as
// many as the request asks for, and returns how many it put.
func encodeReply(buf []byte, rows []Extent) int {
	ne := binary.NativeEndian
	count := min(len(rows), int(ne.Uint32(buf[24:])))
	ne.PutUint32(buf[20:], uint32(count))
	for i, e := range rows[:count] {
		row := buf[headerSize+i*rowSize:]
		ne.PutUint64(row[0:], uint64(e.Logical))
		ne.PutUint64(row[8:], uint64(e.Physical))
		ne.PutUint64(row[16:], uint64(e.Length))
		ne.PutUint32(row[40:], uint32(e.Flags))
	}
	return count
}

func TestDecodeReply(t *testing.T) {
	rows := []Extent{
		{0, 4096, 8192, 0},
		{8192, math.MaxInt64 - 4096, 4096, FlagShared | 0x80000000},
		{1 << 40, 0, 0, FlagLast},
	}
	buf := make([]byte, headerSize+len(rows)*rowSize)
	encodeRequest(buf, 0)
	encodeReply(buf, rows)
	got, err := decodeReply(nil, buf)
	if err != nil || !slices.Equal(got, rows) {
		t.Errorf("decodeReply = %v, %v, want %v", got, err, rows)
	}
}

func TestEncodeRequest(t *testing.T) {
	buf := make([]byte, headerSize+7*rowSize+rowSize-1)
	for i := range buf {
		buf[i] = 0xff
	}
	encodeRequest(buf, 4096)
	ne := binary.NativeEndian
	if start, length := ne.Uint64(buf[0:]), ne.Uint64(buf[8:]); start != 4096 || start+length != math.MaxUint64 {
		t.Errorf("asks for %d bytes from %d", length, start)
	}
	if flags, mapped, count, reserved := ne.Uint32(buf[16:]), ne.Uint32(buf[20:]), ne.Uint32(buf[24:]), ne.Uint32(buf[28:]); flags != 1 || mapped != 0 || count != 7 || reserved != 0 {
		t.Errorf("header has flags %d, mapped %d, count %d, reserved %d", flags, mapped, count, reserved)
	}
}

func TestDecodeReplyRefuses(t *testing.T) {
	reply := func(change func(buf []byte)) []byte {
		buf := make([]byte, headerSize+2*rowSize)
		encodeRequest(buf, 0)
		encodeReply(buf, []Extent{{0, 4096, 4096, 0}, {4096, 8192, 4096, FlagLast}})
		change(buf)
		return buf
	}
	row2 := headerSize + rowSize
	tests := map[string][]byte{
		"empty":             nil,
		"short header":      reply(func([]byte) {})[:headerSize-1],
		"one row too many":  reply(func(b []byte) { binary.NativeEndian.PutUint32(b[20:], 3) }),
		"billions of rows":  reply(func(b []byte) { binary.NativeEndian.PutUint32(b[20:], math.MaxUint32) }),
		"truncated row":     reply(func([]byte) {})[:headerSize+2*rowSize-1],
		"logical too far":   reply(func(b []byte) { binary.NativeEndian.PutUint64(b[row2:], 1<<63) }),
		"physical too far":  reply(func(b []byte) { binary.NativeEndian.PutUint64(b[row2+8:], math.MaxUint64) }),
		"logical overflow":  reply(func(b []byte) { binary.NativeEndian.PutUint64(b[row2:], math.MaxInt64-4095) }),
		"physical overflow": reply(func(b []byte) { binary.NativeEndian.PutUint64(b[row2+8:], math.MaxInt64-4095) }),
		"length too far":    reply(func(b []byte) { binary.NativeEndian.PutUint64(b[row2+16:], 1<<63) }),
	}
	for name, buf := range tests {
		if rows, err := decodeReply(nil, buf); err == nil {
			t.Errorf("%s: decodeReply = %v, want an error", name, rows)
		}
	}
}

func FuzzDecodeReply(f *testing.F) {
	buf := make([]byte, headerSize+2*rowSize)
	encodeRequest(buf, 0)
	encodeReply(buf, []Extent{{0, 4096, 4096, 0}, {4096, 8192, 4096, FlagLast}})
	f.Add(buf)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, buf []byte) {
		rows, err := decodeReply(nil, buf)
		if err != nil {
			return
		}
		for i, e := range rows {
			if e.Logical < 0 || e.Physical < 0 || e.Length < 0 || e.end() < e.Logical || e.Physical+e.Length < e.Physical {
				t.Errorf("row %d is out of range: %+v", i, e)
			}
		}
		again := make([]byte, headerSize+len(rows)*rowSize)
		encodeRequest(again, 0)
		encodeReply(again, rows)
		if back, err := decodeReply(nil, again); err != nil || !slices.Equal(back, rows) {
			t.Errorf("decoded %v, encoded and decoded again %v (%v)", rows, back, err)
		}
		// Whatever the kernel says, judging it ends and does not panic.
		Layout{Size: 1 << 20, Extents: rows}.Problems(4096, 2)
	})
}
