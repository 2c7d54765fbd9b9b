package bootvm

import (
	_ "embed"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest/vm"
)

//go:embed uml.sh
var umlScript []byte

// umlKernel returns the kernel that uml.sh builds, from the cache where it is.
func umlKernel(t testing.TB) string {
	t.Helper()
	cache, err := vm.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(cache, "boot", "linux-um")
	if err := os.MkdirAll(filepath.Dir(kernel), 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(kernel+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(kernel); err != nil {
		script := filepath.Join(t.TempDir(), "uml.sh")
		write(t, script, umlScript, 0o755)
		host(t, script, kernel)
	}
	return kernel
}
