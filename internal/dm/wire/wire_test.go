package wire_test

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	. "dmloop/internal/dm/wire"
)

func TestSizes(t *testing.T) {
	if HeaderSize != unix.SizeofDmIoctl {
		t.Errorf("a header has %d bytes, the kernel's %d", HeaderSize, unix.SizeofDmIoctl)
	}
	if SpecSize != unix.SizeofDmTargetSpec {
		t.Errorf("a spec has %d bytes, the kernel's %d", SpecSize, unix.SizeofDmTargetSpec)
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	h := Header{
		TargetCount: 3, OpenCount: -1, Flags: 0xfffff, EventNr: 0x6072cf,
		Device: dmtable.Device{Major: 253, Minor: 1<<20 - 1},
		Name:   strings.Repeat("n", 127), UUID: strings.Repeat("u", 128),
	}
	buf := make([]byte, 400)
	for i := range buf {
		buf[i] = 0xee
	}
	if err := h.Encode(buf); err != nil {
		t.Fatal(err)
	}
	if buf[HeaderSize] != 0xee {
		t.Error("Encode wrote after the header")
	}
	got, err := DecodeHeader(buf)
	if err != nil {
		t.Fatal(err)
	}
	h.Version, h.DataSize, h.DataStart = [3]uint32{4, 0, 0}, 400, HeaderSize
	if got != h {
		t.Errorf("got %+v, want %+v", got, h)
	}
}

func TestEncodeRefuses(t *testing.T) {
	tests := []struct {
		name string
		h    Header
		size int
	}{
		{"name of 128 bytes", Header{Name: strings.Repeat("n", 128)}, HeaderSize},
		{"uuid of 129 bytes", Header{UUID: strings.Repeat("u", 129)}, HeaderSize},
		{"NUL in the name", Header{Name: "a\x00b"}, HeaderSize},
		{"NUL in the uuid", Header{UUID: "a\x00b"}, HeaderSize},
		{"short buffer", Header{}, HeaderSize - 1},
	}
	for _, test := range tests {
		buf := make([]byte, test.size)
		if err := test.h.Encode(buf); err == nil {
			t.Errorf("%s is accepted", test.name)
		}
		if strings.Trim(string(buf), "\x00") != "" {
			t.Errorf("%s: the buffer was written", test.name)
		}
	}
}

func TestDecodeHeaderRefuses(t *testing.T) {

	tests := []struct {
		name  string
		spoil func(buf []byte) []byte
	}{
		{"short", func(b []byte) []byte { return b[:HeaderSize-1] }},
		{"version 5", func(b []byte) []byte { ne.PutUint32(b, 5); return b }},
		{"size too small", func(b []byte) []byte { ne.PutUint32(b[12:], 304); return b }},
		{"size too large", func(b []byte) []byte { ne.PutUint32(b[12:], HeaderSize+1); return b }},
		{"device", func(b []byte) []byte { b[44] = 1; return b }},
		{"endless name", func(b []byte) []byte { copy(b[48:176], strings.Repeat("n", 128)); return b }},
		{"endless uuid", func(b []byte) []byte { copy(b[176:305], strings.Repeat("u", 129)); return b }},
	}
	for _, test := range tests {
		buf := make([]byte, HeaderSize)
		if err := (&Header{Name: "a"}).Encode(buf); err != nil {
			t.Fatal(err)
		}
		if h, err := DecodeHeader(test.spoil(buf)); err == nil {
			t.Errorf("%s: got %+v", test.name, h)
		}
	}
	h := Header{DataSize: 400, DataStart: 401}
	if _, err := h.Data(make([]byte, 400)); err == nil {
		t.Error("data behind the reply is accepted")
	}
	h.DataStart = HeaderSize - 1
	if _, err := h.Data(make([]byte, 400)); err == nil {
		t.Error("data within the header is accepted")
	}
}

func TestDevice(t *testing.T) {
	// Values of new_encode_dev(MKDEV(major, minor)).
	for dev, want := range map[dmtable.Device]uint64{
		{Major: 8, Minor: 1}:            0x801,
		{Major: 253, Minor: 0}:          0xfd00,
		{Major: 253, Minor: 256}:        0x10fd00,
		{Major: 259, Minor: 4660}:       0x1210334,
		{Major: 4095, Minor: 1<<20 - 1}: 0xffffffff,
	} {
		if got := EncodeDevice(dev); got != want {
			t.Errorf("%v is encoded as %#x, want %#x", dev, got, want)
		}
		if got, err := DecodeDevice(want); err != nil || got != dev {
			t.Errorf("%#x is decoded as %v, %v", want, got, err)
		}
	}
	if _, err := DecodeDevice(1 << 32); err == nil {
		t.Error("a device number of 33 bits is accepted")
	}
}

func TestPutTable(t *testing.T) {
	table := dmtable.Table{{Start: 0, Length: 8, Target: "linear", Args: "8:1 0"}, {Start: 8, Length: 1, Target: "error"}}
	data := make([]byte, TableSize(table))
	if err := PutTable(data, table); err != nil {
		t.Fatal(err)
	}
	if len(data) != 48+48 {
		t.Fatalf("%d bytes", len(data))
	}

	if ne.Uint64(data[8:]) != 8 || ne.Uint32(data[20:]) != 48 || string(data[24:31]) != "linear\x00" || string(data[40:46]) != "8:1 0\x00" {
		t.Errorf("first row %q", data[:48])
	}
	if ne.Uint64(data[48:]) != 8 || ne.Uint32(data[68:]) != 48 || string(data[72:78]) != "error\x00" || data[88] != 0 {
		t.Errorf("second row %q", data[48:])
	}
	for _, row := range []dmtable.Row{{Target: ""}, {Target: "sixteen-letters!"}, {Target: "a\x00b"}, {Target: "a", Args: "b\x00"}} {
		if err := PutTable(make([]byte, 200), dmtable.Table{row}); err == nil {
			t.Errorf("%+v is accepted", row)
		}
	}
}

// FuzzParse feeds arbitrary bytes to every decoder: none may panic or return what
// does not lie within them.
func FuzzParse(f *testing.F) {
	table := dmtable.Table{{Start: 0, Length: 8, Target: "linear", Args: "8:1 0"}, {Start: 8, Length: 1, Target: "error"}}
	data := make([]byte, TableSize(table))
	if err := PutTable(data, table); err != nil {
		f.Fatal(err)
	}
	f.Add(data, uint32(2))
	f.Add(make([]byte, HeaderSize), uint32(48))
	f.Fuzz(func(t *testing.T, data []byte, n uint32) {
		if rows, err := ParseTable(data, n); err == nil && len(rows)*SpecSize > len(data) {
			t.Fatalf("%d rows from %d bytes", len(rows), len(data))
		}
		if list, err := ParseList(data, n); err == nil && len(list)*12 > len(data) {
			t.Fatalf("%d entries from %d bytes", len(list), len(data))
		}
		if deps, err := ParseDeps(data); err == nil && len(deps)*8 > len(data) {
			t.Fatalf("%d devices from %d bytes", len(deps), len(data))
		}
		h, err := DecodeHeader(data)
		if err != nil {
			return
		}
		if part, err := h.Data(data); err == nil && len(part) > len(data)-HeaderSize {
			t.Fatalf("%d bytes of data from %d", len(part), len(data))
		}
		again := make([]byte, HeaderSize)
		if err := h.Encode(again); err != nil {
			t.Fatalf("%+v: %v", h, err)
		}
	})
}
