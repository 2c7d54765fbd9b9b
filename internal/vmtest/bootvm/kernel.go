package bootvm

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
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
	return cached(t, "linux-um", umlScript, func(script, kernel string) { host(t, script, kernel) })
}

// cached returns the path of what a script has made, which is called name and the
// beginning of the script's checksum, and has it made where it is not in the cache.
func cached(t testing.TB, name string, text []byte, run func(script, path string)) string {
	t.Helper()
	cache, err := vm.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	path := filepath.Join(cache, "boot", name+"-"+hex.EncodeToString(sum[:6]))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		script := filepath.Join(t.TempDir(), "make.sh")
		write(t, script, text, 0o755)
		run(script, path)
	}
	return path
}
