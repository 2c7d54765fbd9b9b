package boot

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"dmloop/dmtable"
)

func TestConcise(t *testing.T) {
	m := sample(t)
	text, last, err := Concise(m, CmdlineOptions{})
	want := "host,DMLOOPSHIM-1-host,0,rw,0 1048576 linear PARTUUID=1234abcd-01 0;" +
		"root,DMLOOP-00112233445566778899aabbccddeeff-root,1,rw,0 2048 linear PARTUUID=1234abcd-01 4096,2048 2048 linear PARTUUID=1234abcd-01 16384"
	if err != nil || text != want || last != 1 {
		t.Errorf("%d, %v\n%s\n%s", last, err, text, want)
	}
	if p := Parameter(text); p != `dm-mod.create="`+want+`"` {
		t.Error(p)
	}
	text, _, err = Concise(m, CmdlineOptions{Device: "/dev/vda1", ReadOnly: true})
	if err != nil || !strings.Contains(text, "root,DMLOOP-00112233445566778899aabbccddeeff-root,1,ro,0 2048 linear /dev/vda1 4096") {
		t.Errorf("%v\n%s", err, text)
	}
	m.Host.PartUUID = ""
	if text, _, err = Concise(m, CmdlineOptions{}); err != nil || !strings.HasPrefix(text, "host,DMLOOPSHIM-1-host,0,rw,0 1048576 linear 8:1 0;") {
		t.Errorf("%v\n%s", err, text)
	}
	devices, err := dmtable.ParseConcise(text)
	if err != nil || len(devices) != 2 || devices[1].Table.Size() != 4096 {
		t.Errorf("%+v, %v", devices, err)
	}
}

func TestConciseRefuses(t *testing.T) {
	for _, device := range []string{"a b", "a;b", "a,b", `a"b`, `a\b`, "a#"} {
		if _, _, err := Concise(sample(t), CmdlineOptions{Device: device}); err == nil {
			t.Errorf("device %q", device)
		}
	}
	m := sample(t)
	m.Record.Name = `a\x20b`
	if _, _, err := Concise(m, CmdlineOptions{}); err == nil {
		t.Error("a name with a backslash")
	}
	var limit *LimitError
	for rows, wrong := range map[int]string{257: "257 rows", 200: "bytes"} {
		m := sample(t)
		m.Record.Table = many(t, m, rows)
		if _, _, err := Concise(m, CmdlineOptions{}); !errors.As(err, &limit) || !strings.Contains(err.Error(), wrong) {
			t.Errorf("%d rows: %v", rows, err)
		}
	}
	m = sample(t)
	m.Record.Table = many(t, m, 130)
	text, _, err := Concise(m, CmdlineOptions{Device: "8:1"})
	if err != nil || len(text) >= cmdlineBytes {
		t.Errorf("130 rows: %d bytes, %v", len(text), err)
	}
}

func many(t *testing.T, m Manifest, rows int) dmtable.Table {
	t.Helper()
	var segments []dmtable.Segment
	for i := range rows {
		segments = append(segments, dmtable.Segment{Device: m.Host.Base, Start: dmtable.Sectors(i * 16), Length: 8})
	}
	table, err := dmtable.Build(segments)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// superblock is what veritysetup 2.6 writes for 64 data blocks of 4096 bytes.
func superblock() []byte {
	b := make([]byte, 512)
	copy(b, "verity\x00\x00")
	le := binary.LittleEndian
	le.PutUint32(b[8:], 1)
	le.PutUint32(b[12:], 1)
	copy(b[32:], "sha256")
	le.PutUint32(b[64:], 4096)
	le.PutUint32(b[68:], 4096)
	le.PutUint64(b[72:], 64)
	le.PutUint16(b[80:], 2)
	copy(b[88:], "\xab\xcd")
	return b
}

func TestConciseWithVerity(t *testing.T) {
	s, err := ParseVerity(superblock())
	if err != nil {
		t.Fatal(err)
	}
	hash := strings.Repeat("0A", 32)
	text, last, err := Concise(sample(t), CmdlineOptions{Verity: &Verity{Name: "vroot", HashOffset: 1 << 20, RootHash: hash, Superblock: s}})
	want := ";vroot,,2,ro,0 512 verity 1 /dev/dm-1 /dev/dm-1 4096 4096 64 257 sha256 " + strings.ToLower(hash) + " abcd"
	if err != nil || last != 2 || !strings.HasSuffix(text, want) {
		t.Errorf("%d, %v\n%s", last, err, text)
	}
	for name, v := range map[string]Verity{
		"name":     {Name: "a/b", HashOffset: 1 << 20, RootHash: hash},
		"hash":     {Name: "v", HashOffset: 1 << 20, RootHash: "xyz"},
		"offset":   {Name: "v", HashOffset: 1000, RootHash: hash},
		"overlaps": {Name: "v", HashOffset: 4096, RootHash: hash},
	} {
		v.Superblock = s
		if _, _, err := Concise(sample(t), CmdlineOptions{Verity: &v}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestParseVerityRefuses(t *testing.T) {
	for name, change := range map[string]func([]byte){
		"signature": func(b []byte) { b[0] = 'x' },
		"version":   func(b []byte) { b[8] = 2 },
		"algorithm": func(b []byte) { b[32] = ' ' },
		"block":     func(b []byte) { b[64] = 1 },
		"blocks":    func(b []byte) { b[72] = 0 },
		"salt":      func(b []byte) { b[81] = 2 },
	} {
		b := superblock()
		change(b)
		if _, err := ParseVerity(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := ParseVerity(superblock()[:511]); err == nil {
		t.Error("cut")
	}
}

func FuzzParseVerity(f *testing.F) {
	f.Add(superblock())
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ParseVerity(b); err == nil && len(s.Salt) > 256 {
			t.Error("salt")
		}
	})
}

func TestParseArguments(t *testing.T) {
	for text, want := range map[string]Arguments{
		"root=/dev/x quiet":                          {},
		"dmloop=off":                                 {Off: true},
		"a dmloop.fallback=loop b":                   {Fallback: Loop},
		"dmloop.fallback=loop dmloop.fallback=shell": {Fallback: Shell},
		"dmloop.fallback=x xdmloop=off dmloop=on":    {},
		"dmloop.way=verify":                          {Look: true},
		"dmloop.way=before-mount dmloop.way":         {},
	} {
		if got := ParseArguments(text); got != want {
			t.Errorf("%q: %+v", text, got)
		}
	}
}
