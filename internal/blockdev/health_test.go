package blockdev_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dmloop/dmtable"
	"dmloop/internal/blockdev"
)

const vdbDir = "devices/pci0000:00/0000:00:06.0/virtio4/block/vdb"

func TestHealth(t *testing.T) {
	write := func(name, text string) func(t *testing.T, sysfs string) {
		return func(t *testing.T, sysfs string) {
			path := filepath.Join(sysfs, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	gone := func(link string) func(t *testing.T, sysfs string) {
		return func(t *testing.T, sysfs string) {
			if err := os.Remove(filepath.Join(sysfs, "dev/block", link)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		name         string
		device       dmtable.Device
		spoil        func(t *testing.T, sysfs string)
		lost, ailing string
		readOnly     bool
	}{
		{name: "a sound disk", device: vdb},
		{name: "a sound stack", device: top},
		{name: "gone", device: vdb, spoil: gone("254:16"), lost: "is gone"},
		{name: "no sectors", device: vdb, spoil: write(vdbDir+"/size", "0\n"), lost: "has no sectors any more"},
		{name: "offline", device: vdb, spoil: write(vdbDir+"/device/state", "offline\n"), ailing: "is offline"},
		{name: "running", device: vdb, spoil: write(vdbDir+"/device/state", "running\n")},
		{name: "a controller that gave up", device: vdb, spoil: write(vdbDir+"/device/state", "dead\n"), lost: "is being removed (dead)"},
		{name: "read-only", device: vdb, spoil: write(vdbDir+"/ro", "1\n"), readOnly: true},
		{name: "the disk of a partition", device: vda1, spoil: write("devices/pci0000:00/0000:00:05.0/virtio3/block/vda/device/state", "offline\n"), ailing: "is offline"},
		{name: "two layers down", device: top, spoil: gone("254:1"), lost: "stands on 253:0 (dm-0), which stands on 254:1, which is gone"},
		{name: "one of two", device: stripe, spoil: gone("254:16"), ailing: "stands on 254:16, which is gone"},
		{name: "read-only below", device: stripe, spoil: write(vdbDir+"/ro", "1\n"), readOnly: true},
		{name: "another target is not looked through", device: zero},
	} {
		t.Run(test.name, func(t *testing.T) {
			sysfs := snapshot(t)
			_, c := kernel(t)
			if test.spoil != nil {
				test.spoil(t, sysfs)
			}
			h, err := blockdev.ReadHealth(sysfs, c, test.device)
			if err != nil || h.Lost != test.lost || h.Ailing != test.ailing || h.ReadOnly != test.readOnly {
				t.Errorf("%+v, %v", h, err)
			}
			if (h.Size == 0) != (test.lost != "" && !strings.HasPrefix(test.lost, "stands on") && !strings.HasPrefix(test.lost, "is being")) {
				t.Errorf("size %d", h.Size)
			}
		})
	}
	sysfs := snapshot(t)
	_, c := kernel(t)
	reload("0 409600 error")(t, c)
	if h, err := blockdev.ReadHealth(sysfs, c, top); err != nil || h.Lost != "stands on 253:0 (dm-0), which gives errors only (error table)" {
		t.Errorf("%+v, %v", h, err)
	}
	if _, err := blockdev.ReadHealth(t.TempDir(), c, vdb); err == nil {
		t.Error("without sysfs something is known")
	}
}
