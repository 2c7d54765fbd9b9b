package boot

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/blockdev"
	"dmloop/internal/image"
	"dmloop/internal/lifecycle"
	"dmloop/internal/record"
)

// fakeSystem records what it is asked.
type fakeSystem struct {
	t        *testing.T
	shims    []string
	restored []record.Record
	err      error // of Restore
}

func (f *fakeSystem) EnsureShim(_ context.Context, path, name string) (string, bool, error) {
	f.shims = append(f.shims, path+" "+name)
	return "/dev/null", false, nil // stands for a node that can be looked at
}

func (f *fakeSystem) EnsureMapped(context.Context, string, lifecycle.MapOptions) (lifecycle.Status, bool, error) {
	f.t.Error("mapped")
	return lifecycle.Status{}, false, nil
}

func (f *fakeSystem) Inspect(context.Context, string) (image.Identity, extents.Layout, error) {
	f.t.Error("looked at the file before it was mounted")
	return image.Identity{}, extents.Layout{}, nil
}

func (f *fakeSystem) LiveTable(lifecycle.Status) (dmtable.Table, error) {
	return nil, errors.New("no device")
}

func (f *fakeSystem) Restore(_ context.Context, m record.Record) (lifecycle.Status, error) {
	f.restored = append(f.restored, m)
	return lifecycle.Status{}, f.err
}

func (f *fakeSystem) Unmap(context.Context, string, lifecycle.UnmapOptions) error { return nil }

func (f *fakeSystem) MapLoop(context.Context, string, lifecycle.MapOptions) (string, error) {
	return "", errors.New("no loop driver")
}

// booter works on a machine with one partition of so many sectors, which has the
// file system and the UUIDs of the sample.
func booter(t *testing.T, sectors string) (Booter, *fakeSystem) {
	t.Helper()
	dir := t.TempDir()
	part := filepath.Join(dir, "devices/sda/sda1")
	files := map[string]string{
		"devices/sda/dev": "8:0\n", "devices/sda/size": "4194304\n", "devices/sda/queue/logical_block_size": "512\n",
		"devices/sda/sda1/dev": "8:1\n", "devices/sda/sda1/size": sectors, "devices/sda/sda1/partition": "1\n", "devices/sda/sda1/start": "2048\n",
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	links := map[string]string{"class/block/sda": filepath.Dir(part), "class/block/sda1": part, "dev/block/8:1": part}
	for name, target := range links {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(target, path)); err != nil {
			t.Fatal(err)
		}
	}
	superblock := make([]byte, 70000)
	copy(superblock[1024+0x38:], "\x53\xef")
	copy(superblock[1024+0x68:], "\x0f\x1e\x2d\x3c\x4b\x5a\x69\x78\x87\x96\xa5\xb4\xc3\xd2\xe1\xf0")
	mbr := make([]byte, 1024)
	copy(mbr[440:], "\xcd\xab\x34\x12")
	copy(mbr[510:], "\x55\xaa")
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "sda1"), superblock, 0o600), os.WriteFile(filepath.Join(dir, "sda"), mbr, 0o600)); err != nil {
		t.Fatal(err)
	}
	f := &fakeSystem{t: t}
	return Booter{System: f, Devices: blockdev.Finder{Sys: dir, Dev: dir}, Log: slog.New(slog.DiscardHandler), Run: filepath.Join(dir, "run")}, f
}

func TestActivateWaitsForTheHost(t *testing.T) {
	b, f := booter(t, "0\n")
	if _, err := b.Activate(t.Context(), sample(t), ""); !errors.Is(err, blockdev.ErrNotFound) || len(f.shims) > 0 {
		t.Errorf("%v %q", err, f.shims)
	}
}

func TestActivateRefusesAnotherPartition(t *testing.T) {
	for fallback, want := range map[Fallback]string{Shell: "", Loop: "cannot be put on a loop device"} {
		b, f := booter(t, "524288\n")
		m := sample(t)
		m.Host.Sectors = 1 << 20
		m.Host.PartUUID = "ffffffff-01"
		for again := range 2 {
			out, err := b.Activate(t.Context(), m, fallback)
			text := strings.Join(out.Refused, "\n")
			if err != nil || out.Fallback != Shell || out.Device != "" || out.There != (again == 1) ||
				!strings.Contains(text, "524288 sectors and had 1048576") || !strings.Contains(text, "partition 1234abcd-01 and was on ffffffff-01") || !strings.Contains(text, want) {
				t.Errorf("%s: %+v, %v", fallback, out, err)
			}
		}
		if len(f.shims) != 1 || !strings.HasSuffix(f.shims[0], "/sda1 host") {
			t.Errorf("%q", f.shims)
		}
		if hosts, err := Hosts(b.Run); err != nil || len(hosts) != 0 {
			t.Errorf("%+v %v", hosts, err)
		}
	}
}

func TestTableIsOnTheDeviceOfToday(t *testing.T) {
	m := sample(t)
	table, err := m.Table(dmtable.Device{Major: 254, Minor: 17})
	if err != nil || table.String() != "0 2048 linear 254:17 4096\n2048 2048 linear 254:17 16384\n" {
		t.Errorf("%q %v", table, err)
	}
}

func TestMapOptionsAreThoseOfTheRecord(t *testing.T) {
	o := mapOptions(sample(t))
	if o.Name != "root" || o.UUID != "00112233445566778899aabbccddeeff" || !o.GuardLater || o.NoGuard || o.Pin != "" || o.Window.Limit != 2<<20 {
		t.Errorf("%+v", o)
	}
}

func TestHosts(t *testing.T) {
	b, _ := booter(t, "1048576\n")
	if hosts, err := Hosts(b.Run); err != nil || hosts != nil {
		t.Errorf("%v %v", hosts, err)
	}
	if err := os.MkdirAll(b.Run, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"root.json":  `{"host":{"Name":"root","Device":"/dev/mapper/host","Type":"ext4","Point":"/run/dmloop/host/root","Mounted":true},"outcome":{"Device":"/dev/mapper/root"}}`,
		"other.json": `{"host":{"Name":"other","Point":"/etc"},"outcome":{}}`,
		"bad.json":   `x`,
		"note.txt":   `x`,
	} {
		if err := os.WriteFile(filepath.Join(b.Run, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hosts, err := Hosts(b.Run)
	if err == nil || len(hosts) != 1 || hosts[0].Name != "root" || !hosts[0].Mounted {
		t.Errorf("%+v %v", hosts, err)
	}
}
