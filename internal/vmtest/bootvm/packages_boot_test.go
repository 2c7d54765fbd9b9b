//go:build boot

package bootvm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPackages installs, upgrades and purges in a guest that runs.
func TestPackages(t *testing.T)    { packages(t, qemu) }
func TestUMLPackages(t *testing.T) { packages(t, uml) }

func packages(t *testing.T, p platform) {
	g := Prepare(t, work)
	m := Start(t, p.boot(g, rootArgs, plainDisk(t, g, ""), EmptyDisk(t, t.TempDir(), "data.raw", 256<<20)))
	m.WaitUp()
	m.Must(p.script("mkfs.ext4 -q /dev/vdb && dmloop shim /dev/vdb host && mount /dev/mapper/host /mnt && dmloop create /mnt/image.img 8M && dmloop map /mnt/image.img"))
	guard := "systemctl show -P MainPID dmloop-guard"
	before := m.Must(guard)

	// The triggers of initramfs-tools take minutes under emulation and are not ours.
	m.Must("dpkg-divert --quiet --local --rename --add /usr/sbin/update-initramfs && ln -s /bin/true /usr/sbin/update-initramfs")
	files := m.Must("dpkg -L dmloop dmloop-initramfs | while read -r f; do [ -f \"$f\" ] || [ -L \"$f\" ] && echo \"$f\"; done")
	documented(t, strings.Fields(files))
	m.Must("dpkg --verify dmloop dmloop-initramfs")
	m.Must("dpkg -i " + strings.Join(g.Debs, " ") + " 2>&1")
	if after := m.Must(guard); after == before || after == "0" {
		t.Errorf("the guard was not started anew by an upgrade: %s, %s", before, after)
	}
	contains(t, m.Must("for i in $(seq 100); do dmloop list --noheadings -o STATE,GUARD image | grep -q 'healthy *1' && break; sleep 0.2; done; dmloop list --noheadings -o STATE,GUARD image"), "healthy")

	// The hooks of the initramfs go alone, and nothing else notices.
	after := m.Must(guard)
	m.Must("dpkg --remove dmloop-initramfs 2>&1")
	if now := m.Must(guard); now != after {
		t.Errorf("the guard was stopped with the hooks: %s, %s", after, now)
	}
	m.Must("dpkg -i " + strings.Join(g.Debs, " ") + " 2>&1")
	m.Must("dmloop unmap image && umount /mnt && dmsetup remove --retry host")

	// Not while the machine boots through it.
	m.Must("mkdir -p /etc/dmloop/persist && touch /etc/dmloop/persist/x.json")
	if out, code := m.Run("dpkg --remove dmloop-initramfs dmloop"); code == 0 || !strings.Contains(out, "--revert") {
		t.Errorf("removed in spite of a shim in force: %d\n%s", code, out)
	}
	m.Must("rm /etc/dmloop/persist/x.json; echo '# mine' >/etc/dmlooptab")
	m.Must("dpkg --purge dmloop-initramfs dmloop 2>&1")
	left, _ := m.Run("for f in " + strings.Join(strings.Fields(files), " ") + " /etc/dmlooptab /etc/dmloop /run/dmloop; do [ ! -e $f ] || echo left: $f; done; dpkg -l 'dmloop*' 2>/dev/null | grep -E '^(ii|rc)'; systemctl list-units --all --no-legend 'dmloop*'; find / -xdev -name '*dmloop*' -not -path '/root/*' -not -path '/var/log/*' -not -path '/proc/*'")
	if strings.TrimSpace(left) != "" {
		t.Errorf("after the purge:\n%s", left)
	}
	healthy(t, m)
	m.Must("dpkg -i " + strings.Join(g.Debs, " ") + " 2>&1 && dmloop version")
	m.PowerOff()
}

// documented asserts that docs/files.md tells of every file, or of its folder.
func documented(t *testing.T, files []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(moduleRoot(t), "docs/files.md"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		if docs := string(text); !strings.Contains(docs, "`"+file+"`") && !strings.Contains(docs, "`"+filepath.Dir(file)+"`") {
			t.Errorf("docs/files.md does not tell of %s", file)
		}
	}
}

// TestLintian wants no errors.
func TestLintian(t *testing.T) {
	debs, err := filepath.Glob(filepath.Join(moduleRoot(t), "bin/*.deb"))
	if err != nil || len(debs) < 2 {
		t.Fatal(debs, err)
	}
	out, err := exec.Command("lintian", append([]string{"--fail-on", "error"}, debs...)...).CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

// TestRPM wants every file of the Debian packages in those for rpm, where the place is
// the same.
func TestRPM(t *testing.T) {
	rpms, err := filepath.Glob(filepath.Join(moduleRoot(t), "bin/*.rpm"))
	if err != nil || len(rpms) < 2 {
		t.Fatal(rpms, err)
	}
	list := host(t, append([]string{"rpm", "-qlp"}, rpms...)...)
	contains(t, list, "/usr/sbin/dmloop", "/usr/lib/systemd/system/dmloop@.service", "/usr/share/man/man5/dmlooptab.5.gz", "/usr/share/man/man7/dmloop-tutorial.7.gz", "/usr/sbin/mount.dmloop", "/usr/sbin/umount.dmloop",
		"/usr/lib/dracut/modules.d/90dmloop/module-setup.sh", "/usr/share/zsh/site-functions/_dmloop")
}
