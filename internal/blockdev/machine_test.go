package blockdev_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"dmloop/dmtable"
	"dmloop/internal/blockdev"
)

// sysfsOf makes a sysfs of these files, in which each folder with a file "dev" is a device.
func sysfsOf(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if filepath.Base(name) == "dev" {
			link := filepath.Join(root, "dev/block", text)
			if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(filepath.Dir(path), link); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func TestRemovable(t *testing.T) {
	sysfs := sysfsOf(t, map[string]string{
		"devices/pci/ata1/block/sda/dev": "8:0", "devices/pci/ata1/block/sda/removable": "0",
		"devices/pci/ata1/block/sda/sda1/dev": "8:1", "devices/pci/ata1/block/sda/sda1/partition": "1", "devices/pci/ata1/block/sda/sda1/start": "2048",
		"devices/pci/usb1/1-1/host6/block/sdb/dev": "8:16", "devices/pci/usb1/1-1/host6/block/sdb/removable": "0",
		"devices/pci/usb1/1-1/host6/block/sdb/sdb1/dev": "8:17", "devices/pci/usb1/1-1/host6/block/sdb/sdb1/partition": "1", "devices/pci/usb1/1-1/host6/block/sdb/sdb1/start": "63",
		"devices/pci/ata2/block/sdc/dev": "8:32", "devices/pci/ata2/block/sdc/removable": "1",
		"devices/soc/mmc0/block/mmcblk0/dev": "179:0", "devices/soc/mmc0/block/mmcblk0/removable": "0", "devices/soc/mmc0/block/mmcblk0/device/type": "SD",
		"devices/soc/mmc1/block/mmcblk1/dev": "179:8", "devices/soc/mmc1/block/mmcblk1/removable": "0", "devices/soc/mmc1/block/mmcblk1/device/type": "MMC",
	})
	for number, want := range map[string]bool{"8:0": false, "8:1": false, "8:16": true, "8:17": true, "8:32": true, "179:0": true, "179:8": false} {
		dev, err := dmtable.ParseDevice(number)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := blockdev.Removable(sysfs, dev); err != nil || got != want {
			t.Errorf("%s: %v, %v", number, got, err)
		}
	}
	if _, err := blockdev.Removable(sysfs, dmtable.Device{Major: 1}); err == nil {
		t.Error("a device that is not there")
	}
}

func TestVolumeGroups(t *testing.T) {
	files := map[string]string{}
	for number, d := range map[string][2]string{
		"0": {"vg-root", "LVM-1"}, "1": {"vg-home", "LVM-2"}, "2": {"my--group-a--b", "LVM-3"}, "3": {"crypt-x", "CRYPT-LUKS2-1"}, "4": {"odd", "LVM-4"},
		"5": {"aa-lv-real", "LVM-5-real"},
	} {
		dir := "block/dm-" + number + "/"
		files[dir+"dev"], files[dir+"dm/name"], files[dir+"dm/uuid"] = "253:"+number, d[0], d[1]
	}
	sysfs := sysfsOf(t, files)
	if got, err := blockdev.VolumeGroups(sysfs); err != nil || !slices.Equal(got, []string{"aa", "my-group", "vg"}) {
		t.Errorf("%q, %v", got, err)
	}
	if blockdev.AnySuspended(sysfs) {
		t.Error("none is suspended")
	}
	if err := os.WriteFile(filepath.Join(sysfs, "block/dm-3/dm/suspended"), []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if !blockdev.AnySuspended(sysfs) {
		t.Error("one is suspended")
	}
	if got, err := blockdev.NodePath(sysfs, dmtable.Device{Major: 253, Minor: 2}); err != nil || got != "/dev/mapper/my--group-a--b" {
		t.Errorf("%q, %v", got, err)
	}
}
