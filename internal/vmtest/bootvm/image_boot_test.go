//go:build boot

package bootvm

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// rounds is how often a machine is rebooted and how often its power is cut:
// DMLOOP_BOOT_ROUNDS, or 1.
func rounds(t *testing.T) int {
	t.Helper()
	text := os.Getenv("DMLOOP_BOOT_ROUNDS")
	if text == "" {
		return 1
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("DMLOOP_BOOT_ROUNDS=%s", text)
	}
	return n
}

// install makes the host partition on /dev/vdb with an image in which the tree on
// /dev/vdc is the root file system, and puts the boot manifest on /dev/vdd.
const install = `
mkfs.%[1]s -q /dev/vdb1
udevadm settle
dmloop shim /dev/vdb1 host
mount /dev/mapper/host /mnt
mkdir /mnt/other && cp -r /usr/share/initramfs-tools /mnt/other && (cd /mnt/other && find . -type f -exec sha256sum {} + >/mnt/sums)
size=$(blockdev --getsize64 /dev/vdc)
%[3]s
dmloop map /mnt/root.img
dd if=/dev/vdc of=/dev/mapper/root bs=4M oflag=direct status=none
mkdir -p /root/new && mount /dev/mapper/root /root/new
printf '/dev/mapper/root / ext4 defaults 0 1\n/dev/mapper/host /host %[1]s defaults 0 0\n' >/root/new/etc/fstab
mkdir -p /root/new/host /root/new/etc/dmloop/boot
dmloop boot save root %[2]s
dmloop boot list
cp /etc/dmloop/boot/root.manifest /root/new/etc/dmloop/boot/
tar -C /etc/dmloop/boot -cf /dev/vdd root.manifest
umount /root/new
dmloop boot cmdline root || true
`

// hostSize is that of a disk with room for the image and a copy of it.
const hostSize = 1300 << 20

// imageGuest is a machine whose root file system is a file.
type imageGuest struct {
	platform
	boot Boot
	disk string
	fsck func(t testing.TB, disk string) // checks the host file system
}

// Programs that make the initramfs /root/initrd for a version of the kernel. The first
// does what update-initramfs does in the guest (persist_boot_test.go), and quicker.
const (
	initramfsTools = "mkinitramfs -o /root/initrd "
	dracut         = "dracut --quiet --no-hostonly /root/initrd "
)

// installImage installs a Debian into an image on a partition with this file system.
func installImage(t *testing.T, p platform, fstype, saveOptions, create, initramfs string) imageGuest {
	t.Helper()
	g := Prepare(t, work)
	dir := t.TempDir()
	root := plainDisk(t, g, "")
	disk := PartitionedDisk(t, dir, "host.raw", hostSize)
	content := PlainFilesystem(t, dir, "content.raw", g.Tree, 512<<20)
	handover := EmptyDisk(t, dir, "handover.raw", 16<<20)
	m := Start(t, p.boot(g, rootArgs, root, disk, content, handover))
	m.WaitUp()
	t.Log(m.Must(p.script(fmt.Sprintf(install, fstype, saveOptions, create))))
	// The image stays mapped until the end, and the host is unmounted all the same.
	m.PowerOff()
	fsck := Fsck
	if fstype == "xfs" {
		fsck = xfsRepair
	}
	fsck(t, disk)
	boot := p.boot(g, "root=/dev/mapper/root ro", disk)
	boot.Initrd = filepath.Join(dir, "initrd")
	manifests := filepath.Join(g.Tree, "etc/dmloop/boot")
	host(t, "mkdir", "-p", manifests)
	host(t, "tar", "-C", manifests, "-xf", handover)
	host(t, "unshare", "--mount", "sh", "-ec", "mount -t proc proc $0/proc; chroot $0 "+initramfs+g.Version, g.Tree)
	host(t, "mv", filepath.Join(g.Tree, "root/initrd"), boot.Initrd)
	host(t, "rm", "-r", filepath.Join(g.Tree, "etc/dmloop"))
	return imageGuest{platform: p, disk: disk, boot: boot, fsck: fsck}
}

// up boots and looks at what has to be true at each boot.
func (i imageGuest) up(t *testing.T) *Machine {
	t.Helper()
	m := Start(t, i.boot)
	m.WaitUp()
	// The pins of an image that was mapped before its host was mounted are set while the login
	// is up already.
	out := m.Must(`
systemctl is-system-running --wait >/dev/null
findmnt -no SOURCE /
findmnt -no SOURCE,OPTIONS /run/dmloop/host/root
findmnt -no SOURCE,OPTIONS /host
dmloop list --noheadings --raw -o NAME,STATE,PIN,GRADE,GUARD
dmloop verify root
(cd /host/other && sha256sum --quiet -c /host/sums) && echo others unchanged
losetup -a
systemctl is-active dmloop-guard getty.target`)
	for n, line := range strings.Split(out, "\n") {
		switch {
		case n == 0 && line != "/dev/mapper/root",
			(n == 1 || n == 2) && (!strings.HasPrefix(line, "/dev/mapper/host") || !strings.Contains(line, "rw,")),
			n == 3 && !strings.HasPrefix(line, "root healthy "),
			strings.Contains(line, "loop0"):
			t.Errorf("line %d: %q in\n%s", n, line, out)
		}
	}
	contains(t, out, "immutable", "others unchanged", "\nactive\nactive")
	healthy(t, m)
	return m
}

// clean checks both file systems after an orderly end: that of the host, and that of
// the guest in the image on it.
func (i imageGuest) clean(t *testing.T) {
	t.Helper()
	i.fsck(t, i.disk)
	mounted(t, i.disk, "ro", func(dir string) { host(t, "e2fsck", "-fn", filepath.Join(dir, "root.img")) })
}

// replayed checks a host file system that was not unmounted, in a copy: its journal is
// to be replayed by the next boot.
func (i imageGuest) replayed(t *testing.T, disk string) {
	t.Helper()
	disk = Copy(t, disk, filepath.Join(t.TempDir(), "replayed.raw"))
	mounted(t, disk, "rw", func(dir string) { host(t, "sh", "-c", "cd "+dir+"/other && sha256sum --quiet -c ../sums") })
	i.fsck(t, disk)
	if err := os.Remove(disk); err != nil {
		t.Error(err)
	}
}

// mounted mounts the file system in a disk's partition on the host.
func mounted(t *testing.T, disk, options string, do func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	host(t, "mount", "-o", fmt.Sprintf("%s,loop,offset=%d", options, partitionStart), disk, dir)
	defer host(t, "umount", dir)
	do(dir)
}

// survive reboots, cuts the power, and checks the file systems each time.
func (i imageGuest) survive(t *testing.T) {
	t.Helper()
	m := i.up(t)
	t.Log(m.Must("dmloop status root; lsblk; systemd-analyze time; journalctl -b --no-pager -g dmloop | tail -n 30"))
	for n := range rounds(t) {
		m.Must(fmt.Sprintf("echo %d >/count; dd if=/dev/urandom of=/junk bs=1M count=8 conv=fsync status=none; sha256sum /junk >/junk.sum; sync", n))
		m.PowerOff()
		checkShutdown(t, m.Console())
		i.clean(t)
		m = i.up(t)
		if got := m.Must("cat /count; sha256sum -c --quiet /junk.sum && echo whole"); got != fmt.Sprintf("%d\nwhole", n) {
			t.Errorf("after reboot %d: %q", n, got)
		}
		// Cut in the middle of writing to both file systems.
		m.Must("(while :; do dd if=/dev/urandom of=/busy bs=256k count=8 conv=fsync; dd if=/dev/urandom of=/host/busy bs=256k count=8 conv=fsync; done) >/dev/null 2>&1 & sleep 3")
		m.Kill()
		i.replayed(t, i.disk)
		m = i.up(t)
		if got := m.Must("cat /count; sha256sum -c --quiet /junk.sum && echo whole"); got != fmt.Sprintf("%d\nwhole", n) {
			t.Errorf("after power cut %d: %q", n, got)
		}
	}
	m.PowerOff()
	i.clean(t)
}

const createPlain = "dmloop create /mnt/root.img $size"

// TestImageRootExt4 boots a Debian whose root file system is a file on ext4.
func TestImageRootExt4(t *testing.T)    { imageRootExt4(t, qemu) }
func TestUMLImageRootExt4(t *testing.T) { imageRootExt4(t, uml) }

func imageRootExt4(t *testing.T, p platform) {
	i := installImage(t, p, "ext4", "", createPlain, initramfsTools)
	i.survive(t)
	i.refuse(t)
}

// TestImageRootXfs does so on xfs with reflink, where the pin is worth less and the
// guard has to start in the real root.
func TestImageRootXfs(t *testing.T)    { imageRootXfs(t, qemu) }
func TestUMLImageRootXfs(t *testing.T) { imageRootXfs(t, uml) }

func imageRootXfs(t *testing.T, p platform) {
	i := installImage(t, p, "xfs", "", createPlain, initramfsTools)
	i.survive(t)
}

// TestImageRootBeforeMount maps from the manifest alone.
func TestImageRootBeforeMount(t *testing.T)    { imageRootBeforeMount(t, qemu) }
func TestUMLImageRootBeforeMount(t *testing.T) { imageRootBeforeMount(t, uml) }

func imageRootBeforeMount(t *testing.T, p platform) {
	i := installImage(t, p, "ext4", "--before-mount", createPlain, initramfsTools)
	i.survive(t)
	i.stop(t)
}

// stop has the image moved behind the back of a manifest that is trusted before the
// host is mounted: the guard stops the mapping once it is, and the next boot looks
// first.
func (i imageGuest) stop(t *testing.T) {
	t.Helper()
	disk := i.moved(t, moves["rewritten"])
	boot := i.boot
	boot.Disks = []string{disk}
	m := Start(t, boot)
	m.WaitConsole("dmloop: root: refused: ")
	m.WaitConsole("I/O error")
	m.Kill()

	boot.Append += " dmloop.way=verify"
	i.fallsBack(t, boot)
}

// TestImageRootSealed boots from a sealed image, which is claimed at each boot.
func TestImageRootSealed(t *testing.T)    { imageRootSealed(t, qemu) }
func TestUMLImageRootSealed(t *testing.T) { imageRootSealed(t, uml) }

func imageRootSealed(t *testing.T, p platform) {
	for _, way := range []string{"", "--before-mount"} {
		i := installImage(t, p, "ext4", way, createPlain+" && dmloop seal /mnt/root.img", initramfsTools)
		m := i.up(t)
		contains(t, m.Must("dmloop list --noheadings -o PIN root; swapon --show=NAME --noheadings"), "swap", "root.img")
		m.PowerOff()
		checkShutdown(t, m.Console())
		Fsck(t, i.disk)
		i.up(t).Kill()
		i.up(t).PowerOff()
		Fsck(t, i.disk)
	}
}

// TestImageRootDracut boots with an initramfs of dracut's, in which systemd runs.
func TestImageRootDracut(t *testing.T)    { imageRootDracut(t, qemu) }
func TestUMLImageRootDracut(t *testing.T) { imageRootDracut(t, uml) }

func imageRootDracut(t *testing.T, p platform) {
	for _, way := range []string{"", "--before-mount"} {
		i := installImage(t, p, "ext4", way, createPlain, dracut)
		i.up(t).Kill()
		i.replayed(t, i.disk)
		m := i.up(t)
		m.PowerOff()
		checkShutdown(t, m.Console())
		i.clean(t)
		if way == "" {
			boot := i.boot
			boot.Disks = []string{i.moved(t, moves["rewritten"])}
			i.overLoop(t, boot)
		}
	}
}

// xfsRepair checks the xfs file system in the disk's partition.
func xfsRepair(t testing.TB, disk string) {
	t.Helper()
	part := filepath.Join(t.TempDir(), "part.raw")
	host(t, "dd", "if="+disk, "of="+part, "bs=1M", "skip=1", "conv=sparse", "status=none")
	host(t, "truncate", "-s", strconv.FormatInt(hostSize-2*partitionStart, 10), part)
	host(t, "xfs_repair", "-n", "-f", part)
	if err := os.Remove(part); err != nil {
		t.Error(err)
	}
}

// moves are ways to have an image moved, its host file system being mounted at /mnt.
var moves = map[string]string{
	"rewritten": "cp /mnt/root.img /mnt/copy && mv /mnt/copy /mnt/root.img",
	// What a defragmenter does: 256 blocks trade places with those of another file,
	// and their content goes along (EXT4_IOC_MOVE_EXT, fs/ext4/move_extent.c).
	"defragmented": `python3 -c '
import fcntl, os, struct
image = os.open("/mnt/root.img", os.O_RDWR)
donor = os.open("/mnt/donor", os.O_RDWR | os.O_CREAT)
os.posix_fallocate(donor, 0, 2 << 20)
answer = fcntl.ioctl(image, 0xC028660F, struct.pack("IIQQQQ", 0, donor, 256, 256, 256, 0))
assert struct.unpack("IIQQQQ", answer)[5] == 256
os.fsync(image)
os.unlink("/mnt/donor")
'`,
}

// moved returns a copy of the disk in which the image was moved by another machine,
// which had to make it mutable for that.
func (i imageGuest) moved(t *testing.T, move string) (disk string) {
	t.Helper()
	g := Prepare(t, work)
	disk = Copy(t, i.disk, filepath.Join(t.TempDir(), "moved.raw"))
	m := Start(t, i.platform.boot(g, rootArgs, plainDisk(t, g, ""), disk))
	m.WaitUp()
	m.Must("mount " + i.script("/dev/vdb1") + " /mnt")
	if out, code := m.Run(move); code == 0 || !strings.Contains(out, "Operation not permitted") {
		t.Errorf("a pinned image was moved: exit code %d\n%s", code, out)
	}
	t.Log(m.Must("chattr -i /mnt/root.img && filefrag /mnt/root.img && " + move + " && filefrag /mnt/root.img && umount /mnt"))
	m.PowerOff()
	return disk
}

// refuse has the image moved behind the manifest's back.
func (i imageGuest) refuse(t *testing.T) {
	t.Helper()
	for name, move := range moves {
		t.Run(name, func(t *testing.T) {
			boot := i.boot
			boot.Disks = []string{i.moved(t, move)}
			i.fallsBack(t, boot)
		})
	}
}

// fallsBack boots with an image that has moved: to a shell, and over a loop device.
func (i imageGuest) fallsBack(t *testing.T, boot Boot) {
	t.Helper()
	m := Start(t, boot)
	m.WaitConsole("dmloop: root: refused: ")
	m.WaitConsole("(initramfs)")
	m.Type("poweroff -f\n")
	m.WaitEnd()
	i.overLoop(t, boot)
}

// overLoop boots over a loop device with an image that has moved.
func (i imageGuest) overLoop(t *testing.T, boot Boot) {
	t.Helper()
	boot.Append += " dmloop.fallback=loop"
	m := Start(t, boot)
	m.WaitUp()
	contains(t, m.Console(), "dmloop: root: refused: ", "on a loop device instead")
	contains(t, m.Must("findmnt -no SOURCE /; losetup -a; dmsetup table root"), "/dev/mapper/root\n", "root.img", "linear 7:")
	m.Must("touch /works && sync")
	m.PowerOff()
	// The root file system's device is a file on the host's, which cannot be unmounted.
	i.replayed(t, boot.Disks[0])
}
