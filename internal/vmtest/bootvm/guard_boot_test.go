//go:build boot

package bootvm

import (
	"strings"
	"testing"
)

// TestGuardUnit runs the guard as systemd runs it, with all that its unit forbids,
// and has it do everything that a guard does.
func TestGuardUnit(t *testing.T)    { guardUnit(t, qemu) }
func TestUMLGuardUnit(t *testing.T) { guardUnit(t, uml) }

func guardUnit(t *testing.T, p platform) {
	g := Prepare(t, work)
	m := Start(t, p.boot(g, rootArgs, plainDisk(t, g, ""), EmptyDisk(t, t.TempDir(), "data.raw", 512<<20)))
	m.WaitUp()
	const tries = "for i in $(seq 100); do "
	m.Must(p.script("dmsetup create host --table \"0 819200 linear /dev/vdb 0\" && mkfs.xfs -q /dev/mapper/host && mount /dev/mapper/host /mnt"))
	m.Must("dmloop create /mnt/image.img 16M")
	// Its sandbox lets it use the gate in the kernel, where there is one.
	if version := m.Must("dmloop version"); strings.Contains(version, "gate bpf") {
		m.Must("dmloop map /mnt/image.img")
		if got := m.Must("dmloop list --noheadings -o GRADE,STATE,GUARD,GATE image"); got != "kernel  healthy  1  bpf" {
			t.Errorf("mapped: %q", got)
		}
		m.Must("systemctl kill -s KILL dmloop-guard; ! cat /mnt/image.img; " + tries + "dmloop list --noheadings -o GUARD image | grep -q 1 && exit 0; sleep 0.1; done; exit 1")
		m.Must("! cat /mnt/image.img; " + tries + "journalctl -u dmloop-guard --no-pager | grep -q 'an open of a pinned image was denied.*mapping=image' && exit 0; sleep 0.1; done; exit 1")
		m.Must("dmloop gate --clear")
		if _, code := m.Run(tries + "dmloop list --noheadings -o GRADE,STATE image | grep -q 'kernel *healthy' && exit 0; sleep 0.1; done; exit 1"); code != 0 {
			t.Errorf("the guard does not put the gate in force again: %s", m.Must("dmloop list; journalctl -u dmloop-guard --no-pager | tail -n 20"))
		}
		m.Must("! cat /mnt/image.img && dmloop verify image && dmloop unmap image && cat /mnt/image.img >/dev/null")
	} else if p.name == qemu.name {
		t.Errorf("no gate in the kernel: %s", version)
	}
	m.Must("dmloop map --gate=fanotify /mnt/image.img")
	if got := m.Must("dmloop list --noheadings -o GRADE,STATE,GUARD image"); got != "guarded  healthy  1" {
		t.Errorf("mapped: %q", got)
	}
	m.Must("[ $(systemctl is-active dmloop-guard) = active ]; " + tries + "[ \"$(systemctl show -P StatusText dmloop-guard)\" = '1 mappings, 1 of them healthy; denies opens: yes' ] && exit 0; sleep 0.1; done; exit 1")
	if out, code := m.Run("cat /mnt/image.img"); code == 0 {
		t.Errorf("an open was not denied: %.100q", out)
	}
	m.Must(tries + "journalctl -u dmloop-guard --no-pager | grep -q 'an open of a pinned image was denied.*mapping=image' && exit 0; sleep 0.1; done; exit 1")

	// Killed, it comes back and goes on.
	m.Must("systemctl kill -s KILL dmloop-guard; " + tries + "dmloop list --noheadings -o GUARD image | grep -q 1 && exit 0; sleep 0.1; done; exit 1")
	contains(t, m.Must("journalctl -u dmloop-guard --no-pager"), "adopted, unchanged")

	// Its sandbox lets it set a pin again: the flag goes while it is stopped, and the
	// kernel's claim on a sealed image keeps the grade.
	m.Must("dmloop unmap image && dmloop seal /mnt/image.img && dmloop map --gate=fanotify /mnt/image.img")
	m.Must("systemctl stop dmloop-guard && chattr -i /mnt/image.img && systemctl start dmloop-guard")
	m.Must(tries + "dmloop list --noheadings -o PIN,STATE image | grep -q 'immutable.*healthy' && exit 0; sleep 0.1; done; exit 1")

	// And tear down: the host device gets another table, by which the image lies on
	// another device.
	m.Must(p.script("dmsetup create alias --table \"0 819200 linear /dev/vdb 0\" && echo 0 819200 linear /dev/mapper/alias 0 | dmsetup load host && dmsetup resume --noflush --nolockfs host"))
	m.Must(tries + "dmloop list --noheadings -o STATE image | grep -q failed && exit 0; sleep 0.1; done; exit 1")
	contains(t, m.Must("dmsetup table image"), "error")
	m.Must("dmloop unmap image && umount /mnt && dmsetup remove host && dmsetup remove alias")

	// Without the package's unit, as after make install, it is a unit all the same, and
	// outlives the session of whoever mapped something.
	const unit = "/usr/lib/systemd/system/dmloop-guard.service"
	m.Must("systemctl stop dmloop-guard && mv " + unit + " /root/ && systemctl daemon-reload")
	m.Must(p.script("dmsetup create host --table \"0 819200 linear /dev/vdb 0\" && mount /dev/mapper/host /mnt"))
	m.Must("systemd-run --quiet --scope --unit=session-of-somebody dmloop map --gate=fanotify /mnt/image.img && ! systemctl stop session-of-somebody.scope")
	if got := m.Must("systemctl show -P ControlGroup dmloop-guard; dmloop list --noheadings -o STATE,GUARD image"); got != "/system.slice/dmloop-guard.service\nhealthy  1" {
		t.Errorf("without the unit's file: %q", got)
	}
	m.Must("systemctl kill -s KILL dmloop-guard; " + tries + "dmloop list --noheadings -o GUARD image | grep -q 1 && exit 0; sleep 0.1; done; exit 1")
	m.Must("dmloop unmap image && umount /mnt && dmsetup remove host && systemctl stop dmloop-guard && mv /root/dmloop-guard.service " + unit + " && systemctl daemon-reload")

	// The way down: the unit lets go before file systems are unmounted.
	healthy(t, m)
	m.PowerOff()
}
