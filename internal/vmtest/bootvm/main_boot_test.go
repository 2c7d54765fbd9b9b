//go:build boot

package bootvm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// work is where the trees and disks of this run are.
var work string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("/var/tmp", "dmloop-boot-")
	if err != nil {
		panic(err)
	}
	work = dir
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// Names of the file systems in the guests.
const (
	rootUUID = "11111111-2222-3333-4444-555555555555"
	dataUUID = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
)

// rootArgs mount the root file system as an installer leaves it.
const rootArgs = "root=UUID=" + rootUUID + " ro"

// plainDisk makes the disk of a guest whose root file system is straight on a
// partition, with more lines for fstab.
func plainDisk(t *testing.T, g *Guest, fstab string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(g.Tree, "etc/fstab"), []byte("UUID="+rootUUID+"\t/\text4\terrors=remount-ro\t0 1\n"+fstab), 0o644)
	return RootDisk(t, dir, "root.raw", g.Tree, rootUUID, 1536<<20)
}

// A platform is a kind of machine: qemu with Debian's kernel, or User Mode Linux with
// everything built in, which is many times as quick and has one processor.
type platform struct {
	name string
	disk string // what the names of disks begin with
}

var (
	qemu = platform{"qemu", "vd"}
	uml  = platform{"uml", "ubd"}
)

// boot returns how the platform is started with the guest's kernel and initramfs.
func (p platform) boot(g *Guest, arguments string, disks ...string) Boot {
	b := Boot{Initrd: g.Initrd, Append: arguments, Disks: disks}
	if p == qemu {
		b.Kernel = g.Kernel
	}
	return b
}

// script puts the platform's names of disks into a script that has them as vda and so
// on.
func (p platform) script(text string) string { return strings.ReplaceAll(text, "vd", p.disk) }

// healthy asserts that systemd has nothing to complain of.
func healthy(t *testing.T, m *Machine) {
	t.Helper()
	state, _ := m.Run("systemctl is-system-running --wait")
	if strings.TrimSpace(state) != "running" {
		failed, _ := m.Run("systemctl --failed --no-legend; journalctl -b -p warning --no-pager | tail -n 40")
		t.Errorf("systemd is %s:\n%s", strings.TrimSpace(state), failed)
	}
	if cycles, code := m.Run("journalctl -b --no-pager | grep -i 'ordering cycle'"); code == 0 {
		t.Errorf("ordering cycle:\n%s", cycles)
	}
}

// contains asserts that text has all parts.
func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is not in:\n%s", p, text)
		}
	}
}
