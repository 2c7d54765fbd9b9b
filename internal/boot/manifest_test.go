package boot

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/image"
	"dmloop/internal/record"
)

// sample is a manifest of an image of two pieces.
func sample(t *testing.T) Manifest {
	t.Helper()
	base := dmtable.Device{Major: 8, Minor: 1}
	table, err := dmtable.Build([]dmtable.Segment{{Device: base, Start: 4096, Length: 2048}, {Device: base, Start: 16384, Length: 2048}})
	if err != nil {
		t.Fatal(err)
	}
	return Manifest{
		Version: Version, Way: Verify, Fallback: Shell, Path: "/images/root.img",
		Host: Host{Filesystem: "ext4", UUID: "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0", PartUUID: "1234abcd-01", Sectors: 1 << 20, Shim: "host", Base: base},
		Record: record.Record{
			Version: record.Version, Name: "root", UUID: "DMLOOP-00112233445566778899aabbccddeeff-root", State: guard.Healthy,
			Image: record.Image{Path: "/mnt/images/root.img", FileID: guard.FileID{Inode: 12, Generation: 7, Birth: 99}, Size: 2 << 20, Filesystem: "ext4"},
			Size:  2 << 20, Extents: 2, Grade: "kernel", OnChange: "error", Guard: true,
			Pins:   []record.Pin{{Kind: "immutable", Ours: true}},
			Base:   record.Base{Device: dmtable.Device{Major: 254}, Name: "host", UUID: "DMLOOPSHIM-1-host", Table: "0 1048576 linear 8:1 0\n"},
			Layout: extents.Layout{Size: 2 << 20, Extents: []extents.Extent{{Logical: 0, Physical: 2 << 20, Length: 1 << 20}, {Logical: 1 << 20, Physical: 8 << 20, Length: 1 << 20}}},
			Table:  table,
		},
	}
}

func TestStore(t *testing.T) {
	s := Store{filepath.Join(t.TempDir(), "etc/boot")}
	if names, err := s.Names(); err != nil || names != nil {
		t.Errorf("%v %v", names, err)
	}
	m := sample(t)
	for range 2 {
		if err := s.Save(m); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Load("root")
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("%v\n got %+v\nwant %+v", err, got, m)
	}
	if names, err := s.Names(); err != nil || len(names) != 1 || names[0] != "root" {
		t.Errorf("%v %v", names, err)
	}
	path := filepath.Join(s.Dir, "root.manifest")
	if err := os.Rename(path, filepath.Join(s.Dir, "other.manifest")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load("other"); err == nil {
		t.Error("a manifest under another name was taken")
	}
	if err := os.Symlink("other.manifest", path); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load("root"); err == nil {
		t.Error("a link was followed")
	}
	if _, err := s.Load("../root"); err == nil {
		t.Error("a path was taken for a name")
	}
	if err := s.Remove("other"); err != nil {
		t.Error(err)
	}
}

// TestDamageIsFound changes, cuts and adds every byte of a stored manifest.
func TestDamageIsFound(t *testing.T) {
	b, err := Encode(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if _, err := Decode(bad); err == nil {
			t.Fatalf("byte %d (%q) was changed and nobody saw", i, b[i])
		}
		if _, err := Decode(b[:i]); err == nil {
			t.Fatalf("cut at byte %d", i)
		}
	}
	if _, err := Decode(append(bytes.Clone(b), 'x')); err == nil {
		t.Error("a byte more")
	}
}

func TestCheck(t *testing.T) {
	for name, change := range map[string]func(*Manifest){
		"way":         func(m *Manifest) { m.Way = "x" },
		"fallback":    func(m *Manifest) { m.Fallback = "" },
		"path":        func(m *Manifest) { m.Path = "../x" },
		"root":        func(m *Manifest) { m.Path = "/" },
		"uuid":        func(m *Manifest) { m.Host.UUID = "" },
		"btrfs":       func(m *Manifest) { m.Host.Filesystem = "btrfs" },
		"f2fs sealed": func(m *Manifest) { m.Host.Filesystem, m.Record.Sealed = "f2fs", true },
		"shim":        func(m *Manifest) { m.Host.Shim = "a/b" },
		"base":        func(m *Manifest) { m.Host.Base.Minor = 2 },
		"out of base": func(m *Manifest) { m.Host.Sectors = 16384 + 2047 },
	} {
		m := sample(t)
		change(&m)
		if (Store{t.TempDir()}).Save(m) == nil {
			t.Errorf("%s: saved", name)
		}
		b, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(b); err == nil {
			t.Errorf("%s: read", name)
		}
	}
}

func TestDifferences(t *testing.T) {
	m := sample(t)
	same := image.Identity{FileID: guard.FileID{Major: 254, Inode: 12, Generation: 7, Birth: 99}, Size: 2 << 20}
	if d := m.Differences(same, m.Record.Layout); d != nil {
		t.Errorf("%q", d)
	}
	moved := extents.Layout{Size: 2 << 20, Extents: []extents.Extent{{Physical: 1 << 30, Length: 2 << 20}}}
	for _, c := range []struct {
		id     image.Identity
		layout extents.Layout
		want   string
	}{
		{image.Identity{FileID: guard.FileID{Inode: 13, Generation: 7, Birth: 99}, Size: 2 << 20}, m.Record.Layout, "not the file that was saved"},
		{image.Identity{FileID: guard.FileID{Inode: 12, Generation: 8, Birth: 99}, Size: 2 << 20}, m.Record.Layout, "not the file that was saved"},
		{image.Identity{FileID: guard.FileID{Inode: 12, Generation: 7, Birth: 98}, Size: 2 << 20}, m.Record.Layout, "not the file that was saved"},
		{image.Identity{FileID: guard.FileID{Inode: 12, Generation: 7, Birth: 99}, Size: 1 << 20}, m.Record.Layout, "1048576 bytes and had 2097152"},
		{same, moved, "lies elsewhere"},
	} {
		if d := m.Differences(c.id, c.layout); len(d) != 1 || !strings.Contains(d[0], c.want) {
			t.Errorf("%q does not say %q", d, c.want)
		}
	}
	if d := m.HostDifferences(1<<20, "1234ABCD-01"); d != nil {
		t.Errorf("%q", d)
	}
	if d := m.HostDifferences(1<<21, "1234abcd-01"); d != nil {
		t.Errorf("a partition that grew: %q", d)
	}
	if d := m.HostDifferences(1<<20-1, ""); len(d) != 2 || !strings.Contains(d[1], "partition none") {
		t.Errorf("%q", d)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("{}\n{}\n\n\nsha256 00\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := Decode(b); err == nil && m.check() != nil {
			t.Error("an unsound manifest was read")
		}
	})
}
