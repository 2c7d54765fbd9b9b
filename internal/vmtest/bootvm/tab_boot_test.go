//go:build boot

package bootvm

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// The tables of a guest with images on a second disk, one of them on a third disk that
// is not there at first.
const (
	tabFstab = "/dev/mapper/host\t/srv\text4\tdefaults\t0 2\n" +
		"/dev/mapper/data\t/srv/data\text4\tdefaults\t0 2\n" +
		"/dev/mapper/late\t/late\text4\tnofail\t0 2\n" +
		"/srv/helper.img\t/helper\tdmloop\tdefaults,nofail,x-systemd.mount-timeout=10min\t0 0\n"
	tabLines = "host UUID=" + dataUUID + " - shim\n" +
		"data /srv/data.img\n" +
		"missing /srv/missing.img - nofail\n" +
		"ondemand /srv/ondemand.img - noauto\n" +
		"late UUID=" + lateUUID + " - shim,nofail,x-systemd.device-timeout=5s\n" +
		"lateimage /late/late.img - nofail\n"
	lateUUID = "bbbbbbbb-bbbb-cccc-dddd-eeeeeeeeeeee"
	many     = 50
)

// setUpData makes the disks' file systems and images, by hand and without the tables.
const setUpData = `
for d in vdb:%[1]s vdc:%[2]s; do
	mkfs.ext4 -q -U ${d#*:} -L label-${d%%:*} /dev/${d%%:*}1
	udevadm settle
	dmloop shim /dev/${d%%:*}1 set-${d%%:*}
	mount /dev/mapper/set-${d%%:*} /mnt
	case $d in
	vdb*) images="data ondemand helper $(seq -f n%%g 1 %[3]d)" ;;
	*) images=late ;;
	esac
	for i in $images; do
		dmloop create /mnt/$i.img 2M
		mkfs.ext4 -q -F -E nodiscard /mnt/$i.img
		dmloop provision /mnt/$i.img
	done
	umount /mnt
	dmsetup remove --retry set-${d%%:*}
done
`

func TestTab(t *testing.T) { tables(t, qemu) }

// TestUMLTab is the same, quicker.
func TestUMLTab(t *testing.T) { tables(t, uml) }

func tables(t *testing.T, p platform) {
	g := Prepare(t, work)
	dir := t.TempDir()
	root := plainDisk(t, g, "")
	data := PartitionedDisk(t, dir, "data.raw", 512<<20)
	late := PartitionedDisk(t, dir, "late.raw", 128<<20)
	boot := p.boot(g, rootArgs, root, data, late)

	m := Start(t, boot)
	m.WaitUp()
	m.Must(p.script(fmt.Sprintf(setUpData, dataUUID, lateUUID, many)))
	lines := tabLines
	for i := range many {
		lines += fmt.Sprintf("n%[1]d /srv/n%[1]d.img\n", i+1)
	}
	m.Must("mkdir -p /srv /late /helper; cat >/etc/dmlooptab <<'END'\n" + lines + "END\ncat >>/etc/fstab <<'END'\n" + tabFstab + "END")
	m.PowerOff()

	// With the late disk absent everything else is there.
	boot.Disks = []string{root, data}
	m = Start(t, boot)
	m.WaitUp()
	checkTab(t, m)
	verifyUnits(t, m)
	m.HotPlug(late, len(boot.Disks))
	m.Must("for i in $(seq 60); do [ -e /dev/mapper/lateimage ] && break; sleep 1; done; udevadm settle; [ -e /dev/mapper/lateimage ]")
	contains(t, m.Must("findmnt -no SOURCE /late; dmloop list --noheadings -o NAME,STATE lateimage"), "/dev/mapper/late\n", "lateimage", "healthy")
	checkUdev(t, m)
	m.Must(upstreamNumbers)
	checkUdev(t, m)
	m.PowerOff()
	checkShutdown(t, m.Console())
	inOrder(t, m.Console(), "Unmounted srv-data.mount", "Stopped dmloop@data", "Unmounted srv.mount", "Stopped dmloop@host")
	inOrder(t, m.Console(), "Unmounted helper.mount", "Unmounted srv.mount")
	Fsck(t, data)
	Fsck(t, root)
	Fsck(t, late)
	// A mount past the shim is told, in the log and by the command, and nothing else of the table.
	m = Start(t, boot)
	m.WaitUp()
	found, code := m.Run(p.script("dmloop activate --check; echo $?; sed -i 's,^/dev/mapper/host,LABEL=label-vdb,' /etc/fstab; dmloop activate --check; systemctl daemon-reload; dmesg | grep dmloop-generator; " +
		"sed -i 's,^LABEL=label-vdb,/dev/mapper/host,' /etc/fstab; systemctl daemon-reload; dmloop list --shims; systemctl show -p JobTimeoutUSec --value dev-mapper-lateimage.device"))
	for _, want := range []string{"line 3: the image /srv/missing.img: no such file or directory\n", "\n3\n", p.script("line 1: fstab mounts /srv from LABEL=label-vdb"),
		p.script("in fstab write /dev/mapper/host instead of LABEL=label-vdb"), p.script("/dev/vdb1") + "  510M  0   mount /srv\n", "infinity"} {
		if !strings.Contains(found, want) {
			t.Errorf("activate --check, %d: no %q in\n%s", code, want, found)
		}
	}
	if strings.Count(found, "fstab mounts /srv") < 2 {
		t.Errorf("the command or the generator says nothing:\n%s", found)
	}
	m.PowerOff()

	for _, image := range []string{"data", "helper"} {
		if flags := host(t, "debugfs", "-R", "stat /"+image+".img", fmt.Sprintf("%s?offset=%d", data, partitionStart)); !strings.Contains(flags, "Flags: 0x80000\n") {
			t.Errorf("the image %s is still pinned after the shutdown:\n%s", image, flags)
		}
	}

	m = Start(t, boot)
	m.WaitUp()
	out, _ := m.Run("systemctl stop srv-data.mount; dmloop deactivate --all; lsattr /srv/data.img; dmloop list; dmloop activate --all; dmloop activate --all; dmloop list --noheadings -o NAME | wc -l")
	contains(t, out, "--------------e------- /srv/data.img")
	if f := strings.Fields(out); f[len(f)-1] != fmt.Sprint(many+2) {
		t.Errorf("not all came up again:\n%s", out)
	}
	m.PowerOff()
}

// checkTab looks at a boot with all lines but the late ones.
func checkTab(t *testing.T, m *Machine) {
	t.Helper()
	state, _ := m.Run("systemctl is-system-running --wait; systemctl --failed --no-legend --plain | cut -d' ' -f1")
	if got := strings.Fields(state); len(got) != 2 || got[1] != "dmloop@missing.service" {
		log, _ := m.Run("journalctl -b -p warning --no-pager | tail -n 60; systemctl list-jobs")
		t.Errorf("systemd: %q; only the missing image is to fail\n%s", got, log)
	}
	contains(t, m.Must("systemctl status dmloop@missing.service || true"), "no such file")
	if cycles, code := m.Run("journalctl -b --no-pager | grep -i 'ordering cycle'"); code == 0 {
		t.Errorf("ordering cycle:\n%s", cycles)
	}
	if got := m.Must("findmnt -no SOURCE /srv; findmnt -no SOURCE /srv/data"); !strings.Contains(got, "/dev/mapper/data") || !strings.Contains(got, "/dev/mapper/host") {
		t.Errorf("mounted from %q", got)
	}
	contains(t, m.Must("for i in $(seq 300); do mountpoint -q /helper && break; sleep 1; done; findmnt -no SOURCE,FSTYPE /helper"), "/dev/mapper/helper ext4")
	list := m.Must("dmloop list --noheadings -o NAME,STATE,GUARD,GRADE")
	if n := strings.Count(list, "healthy"); n != many+2 {
		t.Errorf("%d healthy mappings:\n%s", n, list)
	}
	if strings.Contains(list, "ondemand") {
		t.Error("a noauto line came up")
	}
	t.Log(m.Must("systemd-analyze time; systemd-analyze critical-chain --no-pager dmloop.target; systemctl show -P ActiveEnterTimestampMonotonic dmloop@n1.service dmloop.target"))
	m.Must("systemctl start dmloop@ondemand.service && [ -e /dev/mapper/ondemand ] && systemctl stop dmloop@ondemand.service && [ ! -e /dev/mapper/ondemand ]")
}

// verifyUnits has systemd itself judge what is shipped and generated.
func verifyUnits(t *testing.T, m *Machine) {
	t.Helper()
	out, code := m.Run(`systemd-analyze verify --man=no --generators=yes /usr/lib/systemd/system/dmloop*.target /usr/lib/systemd/system/dmloop-guard.service dmloop@data.service dmloop@host.service dmloop-host@` + dataUUID + `.target dmloop-boot@x.service srv-data.mount`)
	// It runs other generators as well, and tells what those complain of.
	if code != 0 || strings.Contains(out, "dmloop") || strings.Contains(out, "srv-data.mount") {
		t.Errorf("systemd-analyze verify: exit code %d\n%s", code, out)
	}
	exposure, _ := m.Run("systemd-analyze security --no-pager dmloop-guard.service | tail -n 1; systemd-analyze security --no-pager dmloop@data.service | tail -n 1")
	t.Log(exposure)
}

// upstreamNumbers gives the rules of device-mapper the numbers that they have outside
// of Debian.
const upstreamNumbers = `
cd /etc/udev/rules.d
cp /usr/lib/udev/rules.d/55-dm.rules 10-dm.rules
cp /usr/lib/udev/rules.d/60-persistent-storage-dm.rules 13-dm-disk.rules
ln -s /dev/null 55-dm.rules
ln -s /dev/null 60-persistent-storage-dm.rules
udevadm control --reload
udevadm trigger
udevadm settle
`

// checkUdev: links are there when map returns and gone when unmap does, and a
// coldplug in between loses none.
func checkUdev(t *testing.T, m *Machine) {
	t.Helper()
	m.Must(`
uuid=$(blkid -p -o value -s UUID /srv/ondemand.img)
links="/dev/disk/by-uuid/$uuid /dev/disk/by-dmloop/links /dev/mapper/links"
for i in 1 2 3; do
	dmloop map /srv/ondemand.img links
	for link in $links; do test -L $link; test -b $link; done
	udevadm trigger --action=add
	udevadm settle
	for link in $links; do test -L $link; test -b $link; done
	test "$(readlink -f /dev/disk/by-uuid/` + dataUUID + `)" = "$(readlink -f /dev/mapper/host)"
	dmloop unmap links
	for link in $links; do test ! -e $link; test ! -L $link; done
done
# A copy of the image on another device keeps the links, whoever came first.
leads() { test "$(readlink -f /dev/disk/by-uuid/$uuid)" = "$(readlink -f /dev/mapper/links)"; }
cp /srv/ondemand.img /run/copy.img
for first in map copy; do
	test $first = copy || dmloop map /srv/ondemand.img links
	loop=$(losetup -f --show /run/copy.img)
	udevadm settle
	test $first = map || dmloop map /srv/ondemand.img links
	test -L /dev/disk/by-uuid/$uuid
	if leads; then exit 1; fi
	udevadm trigger --action=add
	udevadm settle
	test -L /dev/disk/by-uuid/$uuid
	if leads; then exit 1; fi
	losetup -d $loop
	udevadm settle
	leads
	dmloop unmap links
done
# A member of an array is not shown to those who would assemble it, unless asked for.
test -e /srv/member.img || dmloop create /srv/member.img 2M
printf '\374\116\053\251\001' | dd of=/srv/member.img bs=1 seek=4096 conv=notrunc,fsync status=none
printf '\010' | dd of=/srv/member.img bs=1 seek=4240 conv=notrunc,fsync status=none
for rules in links:linux_raid_member_in_image all:linux_raid_member; do
	dmloop map --udev-rules=${rules%%:*} /srv/member.img links
	for again in 1 2; do
		test "$(udevadm info -q property --property=ID_FS_TYPE --value /dev/mapper/links)" = ${rules#*:}
		test -L /dev/disk/by-dmloop/links
		udevadm trigger
		udevadm settle
	done
	dmloop unmap links
done
if dmsetup udevcookies | grep 0xd4d; then exit 1; fi
test "$(systemctl is-active srv-data.mount)" = active
`)
}

// checkShutdown reads the console for what went wrong at the end.
func checkShutdown(t *testing.T, console string) {
	t.Helper()
	_, end, found := strings.Cut(colours.ReplaceAllString(console, ""), "Stopped target graphical.target")
	if !found {
		t.Errorf("no orderly end:\n%s", console)
	}
	for _, bad := range []string{"Failed unmounting", "Failed to unmount", "Could not detach", "Failed to start", "FAILED"} {
		if at := strings.Index(end, bad); at >= 0 {
			t.Errorf("at shutdown: %s", strings.SplitN(end[max(0, at-80):], "\n", 4))
		}
	}
}

// colours are what systemd puts into its messages on the console.
var colours = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")

// inOrder asserts that the console shows the messages one after the other.
func inOrder(t *testing.T, console string, messages ...string) {
	t.Helper()
	rest := colours.ReplaceAllString(console, "")
	for _, message := range messages {
		before, after, found := strings.Cut(rest, message)
		if !found {
			t.Errorf("%q is not on the console, or too early:\n%s", message, before)
		}
		rest = after
	}
}
