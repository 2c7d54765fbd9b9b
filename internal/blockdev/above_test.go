package blockdev_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dmloop/dmtable"
	"dmloop/internal/blockdev"
	"dmloop/internal/dm"
)

// create makes one more device in the fake kernel.
func create(t *testing.T, c *dm.Conn, name, uuid, text string) {
	t.Helper()
	table, err := dmtable.ParseText(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(name, uuid); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Load(dm.ByName(name), table, false); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resume(dm.ByName(name), dm.ResumeOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestAbove(t *testing.T) {
	sysfs := snapshot(t)
	_, c := kernel(t)
	create(t, c, "luks", "CRYPT-x", "0 100 crypt aes-xts 0 254:16 4000000 1 allow_discards 99:99")
	create(t, c, "image", "DMLOOP-00112233445566778899aabbccddeeff-image", "0 8 linear 254:1 4096")
	if _, err := c.Create("bare", ""); err != nil { // without a table so far
		t.Fatal(err)
	}
	for dev, want := range map[dmtable.Device]string{
		vda1:   "shim top",
		vda2:   "seg stripe",
		vda:    "seg shim stripe top",
		vdb:    "luks ro seg stripe", // crypt uses the whole of what it names
		shim:   "top",
		top:    "", // what it stands on itself is left out
		seg:    "luks",
		zero:   "",
		loop1:  "fourk",
		stripe: "luks",
	} {
		got, err := blockdev.Above(sysfs, c, dev)
		if err != nil {
			t.Errorf("%v: %v", dev, err)
		}
		var names []string
		for _, e := range got {
			names = append(names, e.Name)
		}
		slices.Sort(names)
		if text := strings.Join(names, " "); text != want {
			t.Errorf("%v: %q, want %q", dev, text, want)
		}
	}
	create(t, c, "twin", "", "0 8 linear 254:1 100") // beside the shim, over the same partition
	for dev, want := range map[dmtable.Device]int{shim: 2, top: 1} {
		if got, err := blockdev.Above(sysfs, c, dev); err != nil || len(got) != want {
			t.Errorf("%v with a twin: %v, %v", dev, got, err)
		}
	}
	if _, err := blockdev.Above(sysfs, c, dmtable.Device{Major: 99}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such device: %v", err)
	}
}

// What is read-only below makes read-only above.
func TestReadOnly(t *testing.T) {
	sysfs := snapshot(t)
	_, c := kernel(t)
	check := func(dev dmtable.Device, want bool) {
		t.Helper()
		if got, err := blockdev.ReadOnly(sysfs, c, dev); err != nil || got != want {
			t.Errorf("%v: %v, %v, want %v", dev, got, err, want)
		}
	}
	for _, dev := range []dmtable.Device{vda, vda1, shim, top, seg, stripe, zero} {
		check(dev, false)
	}
	check(ro, true)
	path := filepath.Join(sysfs, "devices/pci0000:00/0000:00:05.0/virtio3/block/vda/vda1/ro")
	if err := os.WriteFile(path, []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for dev, want := range map[dmtable.Device]bool{vda1: true, shim: true, top: true, vda: false, seg: false} {
		check(dev, want)
	}
	s, problem, err := blockdev.ReadStack(sysfs, c, top)
	if err != nil || problem != nil || !s.ReadOnly() {
		t.Errorf("%+v, %v, %v", s, problem, err)
	}
}
