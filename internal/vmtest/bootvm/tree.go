package bootvm

import (
	"cmp"
	_ "embed"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"dmloop/internal/vmtest/vm"
)

//go:embed debian.sh
var debianScript []byte

//go:embed agent.sh
var agentScript []byte

const agentUnit = `[Unit]
Description=Runs what the test asks for
[Service]
ExecStart=/usr/local/sbin/agent
StandardOutput=null
StandardError=null
[Install]
WantedBy=multi-user.target
`

// SuiteVariable names the environment variable with the Debian that guests run, such as
// trixie. Without it they run bookworm.
const SuiteVariable = "DMLOOP_BOOT_SUITE"

func asExit(err error, exit **exec.ExitError) bool { return errors.As(err, exit) }

// Guest is what all machines are made from: a tree with dmloop installed.
type Guest struct {
	Tree    string
	Kernel  string // Debian's, unpacked
	Initrd  string // of the tree as it is
	Version string // of the kernel
	Debs    []string
}

var (
	guestOnce sync.Once
	guest     *Guest
)

// Prepare returns the guest, made once for all tests of a run: the cached tree with
// the packages of this source installed.
func Prepare(t testing.TB, dir string) *Guest {
	t.Helper()
	guestOnce.Do(func() { guest = prepare(t, dir) })
	if guest == nil {
		t.Fatal("the guest could not be made")
	}
	return guest
}

func prepare(t testing.TB, dir string) *Guest {
	t.Helper()
	base := cachedTree(t)
	g := &Guest{Tree: filepath.Join(dir, "tree")}
	host(t, "cp", "-a", base, g.Tree)
	write(t, filepath.Join(g.Tree, "usr/local/sbin/agent"), agentScript, 0o755)
	write(t, filepath.Join(g.Tree, "etc/systemd/system/agent.service"), []byte(agentUnit), 0o644)
	host(t, "chroot", g.Tree, "systemctl", "enable", "-q", "agent.service")
	root := moduleRoot(t)
	debs, err := filepath.Glob(filepath.Join(root, "bin/*.deb"))
	if err != nil || len(debs) < 2 {
		t.Fatalf("packages: %v, %v: run make packages", debs, err)
	}
	for _, deb := range debs {
		host(t, "cp", deb, filepath.Join(g.Tree, "root"))
		g.Debs = append(g.Debs, "/root/"+filepath.Base(deb))
	}
	entries, err := os.ReadDir(filepath.Join(g.Tree, "lib/modules"))
	if err != nil || len(entries) != 1 {
		t.Fatalf("kernels in the tree: %v, %v", entries, err)
	}
	g.Version = entries[0].Name()
	g.Kernel = filepath.Join(dir, "vmlinux")
	packed, err := os.ReadFile(filepath.Join(g.Tree, "boot/vmlinuz-"+g.Version))
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := vm.UnpackKernel(packed)
	if err != nil {
		t.Fatal(err)
	}
	write(t, g.Kernel, kernel, 0o644)
	host(t, append([]string{"chroot", g.Tree, "dpkg", "-i"}, g.Debs...)...)
	host(t, "chroot", g.Tree, "update-initramfs", "-c", "-k", g.Version)
	g.Initrd = filepath.Join(g.Tree, "boot/initrd.img-"+g.Version)
	return g
}

// cachedTree returns the tree that debian.sh makes, from the cache where it is.
func cachedTree(t testing.TB) string {
	t.Helper()
	suite := cmp.Or(os.Getenv(SuiteVariable), "bookworm")
	return cached(t, suite, debianScript, func(script, tree string) {
		cache, err := vm.CacheDir()
		if err == nil {
			err = vm.Fetch(vm.Kernel61)
		}
		if err != nil {
			t.Fatal(err)
		}
		host(t, script, suite, mirror(t), filepath.Join(cache, "kernel-"+vm.Kernel61), tree)
	})
}

// mirror returns the archive that the machine's own package sources name.
func mirror(t testing.TB) string {
	t.Helper()
	for line := range strings.Lines(host(t, "apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL) $(COMPONENT)", "Created-By: Packages")) {
		if f := strings.Fields(line); len(f) == 3 && f[1] == "Debian" && f[2] == "main" {
			return f[0]
		}
	}
	t.Fatal("no Debian archive among the machine's package sources")
	return ""
}

func moduleRoot(t testing.TB) string {
	t.Helper()
	return filepath.Dir(host(t, "go", "env", "GOMOD"))
}

func write(t testing.TB, path string, text []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, text, mode); err != nil {
		t.Fatal(err)
	}
}
