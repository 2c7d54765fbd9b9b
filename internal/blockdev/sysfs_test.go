package blockdev_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/dmtable"
	"dmloop/internal/blockdev"
	"dmloop/internal/dm"
	"dmloop/internal/dm/dmtest"
)

// Devices of testdata/sys.txtar.
var (
	vda    = dmtable.Device{Major: 254, Minor: 0}
	vda1   = dmtable.Device{Major: 254, Minor: 1}
	vda2   = dmtable.Device{Major: 254, Minor: 2}
	vdb    = dmtable.Device{Major: 254, Minor: 16}
	loop1  = dmtable.Device{Major: 7, Minor: 1}
	shim   = dmtable.Device{Major: 253, Minor: 0}
	seg    = dmtable.Device{Major: 253, Minor: 1}
	stripe = dmtable.Device{Major: 253, Minor: 2}
	zero   = dmtable.Device{Major: 253, Minor: 3}
	top    = dmtable.Device{Major: 253, Minor: 4}
	big    = dmtable.Device{Major: 253, Minor: 5}
	fourk  = dmtable.Device{Major: 253, Minor: 6}
	ro     = dmtable.Device{Major: 253, Minor: 7}
)

// snapshot unpacks testdata/sys.txtar as a sysfs and returns its root.
func snapshot(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("testdata/sys.txtar")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	links := filepath.Join(root, "dev", "block")
	if err := os.MkdirAll(links, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, file := range strings.Split(string(text), "\n-- ")[1:] {
		name, data, found := strings.Cut(file, " --\n")
		if !found {
			t.Fatalf("testdata/sys.txtar has the file %q", file)
		}
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.TrimSuffix(data, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if filepath.Base(path) != "dev" {
			continue
		}
		target := filepath.Join("..", "..", filepath.Dir(name))
		if err := os.Symlink(target, filepath.Join(links, strings.TrimSpace(data))); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// kernel returns a fake with the device-mapper devices of testdata/sys.txtar.
func kernel(t *testing.T) (*dmtest.Kernel, *dm.Conn) {
	t.Helper()
	k := dmtest.New()
	c := k.Conn()
	for _, d := range []struct{ name, table string }{
		{"shim", "0 409600 linear 254:1 0"},
		{"seg", "0 8192 linear 254:2 2048\n8192 16384 linear 254:16 4096"},
		{"stripe", "0 32736 striped 2 24 254:16 100000 254:2 100000"},
		{"zero", "0 8192 zero"},
		{"top", "0 409600 linear 253:0 0"},
		{"big", "0 409600 linear 7:0 0"},
		{"fourk", "0 8192 linear 7:1 8"},
		{"ro", "0 8192 linear 254:16 200000"},
	} {
		table, err := dmtable.ParseText(d.table)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Create(d.name, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Load(dm.ByName(d.name), table, d.name == "ro"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Resume(dm.ByName(d.name), dm.ResumeOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return k, c
}

func TestBelow(t *testing.T) {
	sysfs := snapshot(t)
	_, c := kernel(t)
	for host, want := range map[dmtable.Device][]dmtable.Device{
		top:  {top, shim},
		shim: {shim},
		seg:  {seg},
		vda1: nil,
	} {
		got, err := blockdev.Below(sysfs, c, host)
		if err != nil || len(got) != len(want) {
			t.Errorf("%v: got %v, %v, want %v", host, got, err, want)
			continue
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%v: got %v, want %v", host, got, want)
			}
		}
	}
	if _, err := blockdev.Below(sysfs, nil, top); !errors.Is(err, blockdev.ErrNoTables) {
		t.Errorf("without a source: %v", err)
	}
	if got, err := blockdev.Below(sysfs, nil, vda1); err != nil || got != nil {
		t.Errorf("a partition without a source: %v, %v", got, err)
	}
}
