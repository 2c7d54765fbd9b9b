//go:build boot

package bootvm

import (
	"os"
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
	const dataLine = "UUID=" + dataUUID + "\t/data\text4\tdefaults\t0 2"
	disk := plainDisk(t, g, dataLine+"\n")
	data := RootDisk(t, t.TempDir(), "data.raw", t.TempDir(), dataUUID, 128<<20)
	boot := p.boot(g, rootArgs, disk, data)
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
	m.Must("dmloop create /data/image.img 16M")
	// A maker that is switched off is not believed: fstab stays as it is, and all can be taken back.
	m.Must("cp /etc/fstab /root/fstab; sed -i 's/^update_initramfs=.*/update_initramfs=no/' /etc/initramfs-tools/update-initramfs.conf; grep -x update_initramfs=no /etc/initramfs-tools/update-initramfs.conf")
	out, code = m.Run("dmloop shim --persist / 2>&1")
	if code != 3 {
		t.Errorf("with update-initramfs switched off: exit code %d", code)
	}
	contains(t, out, "would not make the shim", "update_initramfs=yes")
	m.Must("cmp /root/fstab /etc/fstab && ls /var/tmp | grep -c dmloop | grep -x 0")
	m.Must("dmloop shim --persist / --revert && cmp /root/fstab /etc/fstab; sed -i 's/^update_initramfs=.*/update_initramfs=yes/' /etc/initramfs-tools/update-initramfs.conf")
	t.Log(m.Must("cp /etc/fstab /root/fstab; dmloop shim --persist / 2>&1; cp /etc/fstab /root/fstab2; dmloop shim --persist /data 2>&1"))
	m.Must("cmp /root/fstab /etc/dmloop/persist/shim-root/fstab.backup && cmp /root/fstab2 /etc/dmloop/persist/shim-data/fstab.backup")
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
	if got := m.Must("findmnt -no SOURCE /data && dmloop map /data/image.img data"); got != "/dev/mapper/shim-data\n/dev/mapper/data" {
		t.Errorf("the other file system and its image: %s", got)
	}
	t.Log(m.Must("dmloop list; lsblk; ls -l /dev/mapper /dev/disk/by-uuid /dev/disk/by-dmloop"))
	m.Must("mkfs.ext4 -q /dev/mapper/image && mount /dev/mapper/image /mnt && echo hello >/mnt/x && umount /mnt && dmloop unmap image")
	contains(t, m.Must("dmloop shim --persist / --revert --dry-run"), "-/dev/mapper/shim-root\t/", "-shim-root\tUUID=")
	m.Must("dmloop unmap data && dmloop shim --persist / --revert && dmloop shim --persist /data --revert")
	m.PowerOff()
	checkShutdown(t, m.Console())

	Extract(t, disk, "/boot/initrd.img-"+g.Version, newInitrd)
	m = Start(t, boot)
	m.WaitUp()
	healthy(t, m)
	if got := m.Must("findmnt -no SOURCE /"); got != p.script("/dev/vda1") {
		t.Errorf("the root file system is on %s after the revert", got)
	}
	if got := m.Must("findmnt -no SOURCE /data"); got != p.script("/dev/vdb1") {
		t.Errorf("the other file system is on %s after the revert", got)
	}
	if after := m.Must("cat /etc/fstab; cat /etc/dmlooptab; ls /etc/dmloop/persist"); after != "UUID="+rootUUID+"\t/\text4\terrors=remount-ro\t0 1\n"+dataLine {
		t.Errorf("left behind:\n%s", after)
	}
	m.PowerOff()
	Fsck(t, disk)
	Fsck(t, data)
}

// persistMaker stands in for update-initramfs: it puts in place, in the same way, what
// that has made beforehand, in seconds, and stops where the test wants the power to be
// cut.
const persistMaker = `cat >/usr/sbin/update-initramfs <<'END'
#!/bin/sh
set -e
stop() { [ "$(cat /run/stage)" != "$1" ] || { touch /run/here; sleep 1000; }; }
stop before
from=/root/initrd.without
if grep -q x-initrd.attach /etc/dmlooptab; then from=/root/initrd.with; fi
to=$(ls /boot/initrd.img-* | head -n 1)
cp $from $to.new
stop during
mv $to.new $to
sync
stop after
END
chmod +x /usr/sbin/update-initramfs
sync
`

// TestUMLPersistCut cuts the power at every step of the way to a shim under the root
// file system and back, and boots with the initramfs that the disk has then, and with
// the one it had before: a boot loader reads an ext4 without its journal and may find
// the older one.
func TestUMLPersistCut(t *testing.T) {
	g := Prepare(t, work)
	table := filepath.Join(g.Tree, "etc/dmlooptab")
	write(t, table, []byte("shim-root UUID="+rootUUID+" - shim,noauto,x-initrd.attach\n"), 0o644)
	host(t, "chroot", g.Tree, "mkinitramfs", "-o", "/root/initrd.with", g.Version)
	host(t, "rm", table)
	host(t, "cp", g.Initrd, filepath.Join(g.Tree, "root/initrd.without"))
	disk := plainDisk(t, g, "")
	host(t, "rm", filepath.Join(g.Tree, "root/initrd.with"), filepath.Join(g.Tree, "root/initrd.without"))
	boot := uml.boot(g, rootArgs, disk)
	older, newer := g.Initrd, filepath.Join(t.TempDir(), "initrd")
	m := Start(t, boot)
	m.WaitUp()
	before := m.Must(persistMaker + "cat /etc/fstab")
	const there, back = "dmloop shim --persist /", "dmloop shim --persist / --revert"
	for _, cut := range []struct {
		command, stage, root string // root: what the initramfs that is on the disk mounts
	}{
		{there, "before", "/dev/ubda1"},
		{there, "during", "/dev/ubda1"},
		{there, "after", "/dev/mapper/shim-root"},
		{there, "end", "/dev/mapper/shim-root"},
		{back, "before", "/dev/mapper/shim-root"},
		{back, "during", "/dev/mapper/shim-root"},
		{back, "after", "/dev/ubda1"},
		{back, "end", "/dev/ubda1"},
	} {
		t.Log(cut.command, cut.stage)
		m.Must("rm -f /run/here; echo " + cut.stage + " >/run/stage")
		if cut.stage == "end" {
			m.Must(cut.command + " 2>&1")
		} else {
			m.Must("(" + cut.command + " >/run/persist.log 2>&1 &); for i in $(seq 3000); do [ -e /run/here ] && exit 0; sleep 0.1; done; cat /run/persist.log; exit 1")
		}
		m.Kill()
		after := Copy(t, disk, filepath.Join(t.TempDir(), "copy.raw"))
		mounted(t, after, "rw", func(dir string) { host(t, "cp", filepath.Join(dir, "boot/initrd.img-"+g.Version), newer) })
		Fsck(t, after)
		if err := os.Remove(after); err != nil {
			t.Fatal(err)
		}
		for _, initrd := range []string{older, newer} {
			boot.Initrd = initrd
			m = Start(t, boot)
			m.WaitUp()
			healthy(t, m)
			root := m.Must("findmnt -no SOURCE /")
			t.Logf("%s: root on %s", filepath.Base(initrd), root)
			if initrd == newer && root != cut.root {
				t.Errorf("the root file system is on %s, not on %s", root, cut.root)
			}
			if initrd == older {
				m.PowerOff()
			}
		}
		if cut.stage == "end" {
			older = filepath.Join(t.TempDir(), "older")
			host(t, "cp", newer, older)
		}
	}
	if got := m.Must("cat /etc/fstab /etc/dmlooptab; ls /etc/dmloop/persist"); got != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", got, before)
	}
	m.PowerOff()
	Fsck(t, disk)
}
