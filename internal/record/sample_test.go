package record

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
)

// sample is a record in which every field has a value of its own.
func sample(name string) Record {
	dev := dmtable.Device{Major: 8, Minor: 1}
	return Record{
		Version: Version, Name: name, UUID: UUIDPrefix + "00112233445566778899aabbccddeeff-" + name,
		Device: dmtable.Device{Major: 253, Minor: 7}, State: guard.Weakened, Reason: "pin lost: immutable",
		Image: Image{Path: "/srv/a b\n\"ü\".img", FileID: guard.FileID{Major: 253, Minor: 1, Inode: 1<<63 + 5, Generation: 9, Birth: -3},
			Size: 12288, Filesystem: "xfs", Reflink: true, Handle: Handle{Type: 1, Hex: "0a0b"}},
		Offset: 4096, Size: 8192, ReadOnly: true, Sealed: true, Extents: 2,
		Pins: []Pin{{Kind: "nodefrag", Ours: true}, {Kind: "immutable"}}, Grade: "guarded", Proof: true,
		OnChange: "suspend", UdevRules: "all", Guard: true, Gate: guard.GateBPF, Unsafe: true, Parts: []Part{{Name: name + "p1", Number: 1}},
		Growing: &Growing{From: 8192, To: 12288}, Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		Below: []Below{{Device: dmtable.Device{Major: 8, Minor: 1}, Name: "sda1"}},
		Base:  Base{Device: dev, Name: "host", UUID: "LVM-x", Table: "0 100 linear 8:1 0\n"},
		Layout: extents.Layout{Size: 12288, Extents: []extents.Extent{
			{Logical: 0, Physical: 1 << 40, Length: 4096}, {Logical: 4096, Physical: 8192, Length: 8192}}},
		Table: dmtable.Table{
			{Start: 0, Length: 8, Target: dmtable.Linear, Args: "8:1 2048"},
			{Start: 8, Length: 8, Target: dmtable.Linear, Args: "8:1 16"},
		},
	}
}

// openStore makes a store in a new folder.
func openStore(t *testing.T) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	s, err := Open(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, dir
}

func save(t *testing.T, s *Store, m Record) {
	t.Helper()
	if err := s.Save(m); err != nil {
		t.Fatal(err)
	}
}

// files lists what is in a folder.
func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
