//go:build boot

package bootvm

import (
	"path/filepath"
	"testing"
)

// TestPersistRoot has the root file system of an installed machine mounted from a
// shim, maps an image on it, and takes it all back.
func TestPersistRoot(t *testing.T) { persistRoot(t, qemu) }

// TestUMLPersistRoot is the same, quicker.
func TestUMLPersistRoot(t *testing.T) { persistRoot(t, uml) }

func persistRoot(t *testing.T, p platform) {
	g := Prepare(t, work)
	disk := plainDisk(t, g, "")
	boot := p.boot(g, rootArgs, disk)
	newInitrd := filepath.Join(t.TempDir(), "initrd")

	m := Start(t, boot)
	m.WaitUp()
	healthy(t, m)
	m.Must("dmloop create /srv/image.img 16M")
	out, code := m.Run("dmloop map /srv/image.img")
	if code != 3 {
		t.Errorf("an image on a plain partition: exit code %d", code)
	}
	contains(t, out, "mounted-directly")
	before := m.Must("cat /etc/fstab; ls /etc/dmlooptab 2>&1 || true")
	dry := m.Must("dmloop shim --persist / --dry-run")
	contains(t, dry, "edit /etc/dmlooptab", "+shim-root\tUUID="+rootUUID+"\t-\tshim,noauto,x-initrd.attach",
		"run update-initramfs -u -k all", "edit /etc/fstab", "+/dev/mapper/shim-root\t/\text4\terrors=remount-ro\t0 1")
	if after := m.Must("cat /etc/fstab; ls /etc/dmlooptab 2>&1 || true"); after != before {
		t.Errorf("the dry run changed something:\n%s", after)
	}
	t.Log(m.Must("dmloop shim --persist / 2>&1"))
	m.PowerOff()

	Extract(t, disk, "/boot/initrd.img-"+g.Version, newInitrd)
	boot.Initrd = newInitrd
	m = Start(t, boot)
	m.WaitUp()
	healthy(t, m)
	if got := m.Must("findmnt -no SOURCE /"); got != "/dev/mapper/shim-root" {
		t.Errorf("the root file system is on %s", got)
	}
	if got := m.Must("dmloop map /srv/image.img"); got != "/dev/mapper/image" {
		t.Errorf("mapped as %s", got)
	}
	t.Log(m.Must("dmloop list; lsblk; ls -l /dev/mapper /dev/disk/by-uuid /dev/disk/by-dmloop"))
	m.Must("mkfs.ext4 -q /dev/mapper/image && mount /dev/mapper/image /mnt && echo hello >/mnt/x && umount /mnt && dmloop unmap image")
	contains(t, m.Must("dmloop shim --persist / --revert --dry-run"), "-/dev/mapper/shim-root\t/", "-shim-root\tUUID=")
	m.Must("dmloop shim --persist / --revert")
	m.PowerOff()

	Extract(t, disk, "/boot/initrd.img-"+g.Version, newInitrd)
	m = Start(t, boot)
	m.WaitUp()
	healthy(t, m)
	if got := m.Must("findmnt -no SOURCE /"); got != p.script("/dev/vda1") {
		t.Errorf("the root file system is on %s after the revert", got)
	}
	if after := m.Must("cat /etc/fstab; cat /etc/dmlooptab; ls /etc/dmloop/persist"); after != "UUID="+rootUUID+"\t/\text4\terrors=remount-ro\t0 1" {
		t.Errorf("left behind:\n%s", after)
	}
	m.PowerOff()
	Fsck(t, disk)
}
