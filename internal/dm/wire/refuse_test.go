package wire_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"dmloop/dmtable"
	. "dmloop/internal/dm/wire"
)

var ne = binary.NativeEndian

// rows returns two rows as the kernel prints them: next counts from the first.
func rows(t *testing.T) []byte {
	t.Helper()
	table := dmtable.Table{{Start: 0, Length: 8, Target: "linear", Args: "8:1 0"}, {Start: 8, Length: 1, Target: "error"}}
	data := make([]byte, TableSize(table))
	if err := PutTable(data, table); err != nil {
		t.Fatal(err)
	}
	ne.PutUint32(data[48+20:], 96)
	return data
}

func TestParseTable(t *testing.T) {
	table, err := ParseTable(rows(t), 2)
	if err != nil || table.String() != "0 8 linear 8:1 0\n8 1 error \n" {
		t.Fatalf("%v, %v", table, err)
	}
	for name, spoil := range map[string]func(b []byte) []byte{
		"too many rows":            func(b []byte) []byte { return b[:79] },
		"cut off in the spec":      func(b []byte) []byte { return b[:80] },
		"cut off in the arguments": func(b []byte) []byte { return b[:88] },
		"next beyond the end":      func(b []byte) []byte { ne.PutUint32(b[20:], 97); return b },
		"next backwards":           func(b []byte) []byte { ne.PutUint32(b[20:], 0); return b },
		"next within the row":      func(b []byte) []byte { ne.PutUint32(b[20:], 45); return b },
		"next at the end":          func(b []byte) []byte { ne.PutUint32(b[20:], 96); return b },
		"endless target":           func(b []byte) []byte { copy(b[24:40], bytes.Repeat([]byte("x"), 16)); return b },
		"endless arguments":        func(b []byte) []byte { copy(b[88:], bytes.Repeat([]byte("x"), 8)); return b },
	} {
		if table, err := ParseTable(spoil(rows(t)), 2); err == nil {
			t.Errorf("%s: got %v", name, table)
		}
	}
}

// entries returns two list entries of a kernel with uuids: "ab" (uuid "u") and "c".
func entries() []byte {
	var b []byte
	b = ne.AppendUint64(b, EncodeDevice(dmtable.Device{Major: 253, Minor: 1}))
	b = ne.AppendUint32(b, 40)
	b = append(b, "ab\x00\x00"...)
	b = ne.AppendUint32(b, 7)
	b = ne.AppendUint32(b, 1)
	b = append(b, "u\x00\x00\x00\x00\x00\x00\x00"...)
	b = append(b, make([]byte, 8)...) // the kernel may leave room
	b = ne.AppendUint64(b, EncodeDevice(dmtable.Device{Major: 253, Minor: 2}))
	b = ne.AppendUint32(b, 0)
	b = append(b, "c\x00\x00\x00"...)
	b = ne.AppendUint32(b, 8)
	return ne.AppendUint32(b, 2)
}

func TestParseList(t *testing.T) {
	list, err := ParseList(entries(), 45)
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	if a := list[0]; a.Name != "ab" || a.UUID != "u" || !a.HasUUID || a.EventNr != 7 || a.Device != (dmtable.Device{Major: 253, Minor: 1}) {
		t.Errorf("first: %+v", a)
	}
	if c := list[1]; c.Name != "c" || c.UUID != "" || !c.HasUUID || c.EventNr != 8 || c.Device != (dmtable.Device{Major: 253, Minor: 2}) {
		t.Errorf("second: %+v", c)
	}
	for name, spoil := range map[string]func(b []byte) []byte{
		"empty":                    func([]byte) []byte { return nil },
		"cut off in the entry":     func(b []byte) []byte { return b[:11] },
		"cut off in the name":      func(b []byte) []byte { return b[:14] },
		"cut off in the event":     func(b []byte) []byte { return b[:20] },
		"cut off in the uuid":      func(b []byte) []byte { return b[:25] },
		"cut off in the second":    func(b []byte) []byte { return b[:50] },
		"next beyond the end":      func(b []byte) []byte { ne.PutUint32(b[8:], 65); return b },
		"next within the entry":    func(b []byte) []byte { ne.PutUint32(b[8:], 20); return b },
		"impossible device number": func(b []byte) []byte { b[5] = 1; return b },
	} {
		if list, err := ParseList(spoil(entries()), 45); err == nil {
			t.Errorf("%s: got %+v", name, list)
		}
	}
	if list, err := ParseList(make([]byte, 16), 45); err != nil || len(list) != 0 {
		t.Errorf("no devices: %+v, %v", list, err)
	}
}

func TestParseDeps(t *testing.T) {
	b := ne.AppendUint32(nil, 2)
	b = ne.AppendUint32(b, 0)
	b = ne.AppendUint64(b, EncodeDevice(dmtable.Device{Major: 8, Minor: 1}))
	b = ne.AppendUint64(b, EncodeDevice(dmtable.Device{Major: 254, Minor: 16}))
	deps, err := ParseDeps(b)
	if err != nil || len(deps) != 2 || deps[1] != (dmtable.Device{Major: 254, Minor: 16}) {
		t.Errorf("%v, %v", deps, err)
	}
	for _, short := range [][]byte{nil, b[:7], b[:23]} {
		if deps, err := ParseDeps(short); err == nil {
			t.Errorf("%d bytes: %v", len(short), deps)
		}
	}
	b[12] = 1 // above 32 bits
	if deps, err := ParseDeps(b); err == nil {
		t.Errorf("impossible device number: %v", deps)
	}
}
