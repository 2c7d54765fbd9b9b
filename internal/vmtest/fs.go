package vmtest

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mkfsOptions of each type: overwrite without asking, and discard nothing,
// which takes a guest a second per disk.
var mkfsOptions = map[string][]string{
	"ext4":  {"-q", "-F", "-E", "nodiscard"},
	"xfs":   {"-q", "-f", "-K"},
	"btrfs": {"-q", "-f", "-K"},
	"f2fs":  {"-q", "-f", "-t", "0"},
	"vfat":  {"-I"},
	"exfat": {},
	"ntfs3": {"-q", "-F", "-Q"},
}

// HasFilesystem reports whether this kernel has the file system, as a module too.
func HasFilesystem(t testing.TB, fstype string) bool {
	t.Helper()
	Run(t, "modprobe", "-q", fstype)
	return strings.Contains(Must(t, "cat", "/proc/filesystems"), "\t"+fstype+"\n")
}

// MountOptions are what mount(8) has to be told of a file system on which files have no
// mode of their own: they are root's alone.
func MountOptions(fstype string) []string {
	switch fstype {
	case "vfat", "exfat", "ntfs3":
		return []string{"-t", fstype, "-o", "uid=0,gid=0,umask=077"}
	}
	return nil
}

// Mkfs makes a file system on dev, of one of the types that images can lie on.
func Mkfs(t testing.TB, fstype, dev string, opts ...string) {
	t.Helper()
	RequireGuest(t)
	known, ok := mkfsOptions[fstype]
	if !ok {
		t.Fatalf("no options known for mkfs.%s", fstype)
	}
	tool := "mkfs." + strings.TrimSuffix(fstype, "3") // ntfs3 is the kernel's name
	Must(t, slices.Concat([]string{tool}, known, opts, []string{dev})...)
}

// CanMake reports whether this kernel mounts what Mkfs makes of a type. The blocks of f2fs
// are as large as a page, and mkfs.f2fs before 1.16 makes them of 4 KiB only.
func CanMake(fstype string) bool { return fstype != "f2fs" || os.Getpagesize() == 4096 }

// Mount mounts dev on a new folder, with mount(8)'s options, and returns the
// folder. It is unmounted when the test ends.
func Mount(t testing.TB, dev string, opts ...string) string {
	t.Helper()
	RequireGuest(t)
	dir, err := os.MkdirTemp("/run", "mnt-")
	if err != nil {
		t.Fatal(err)
	}
	Must(t, append(append([]string{"mount"}, opts...), dev, dir)...)
	t.Cleanup(func() {
		if mounted(dir) {
			if r := Run(t, "umount", dir); r.Code != 0 {
				t.Errorf("umount %s: %s", dir, r.Stderr)
				return
			}
		}
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Umount unmounts a folder before the test ends.
func Umount(t testing.TB, dir string) {
	t.Helper()
	Must(t, "umount", dir)
}

// mounted reports whether dir is a mount point: its device is not its parent's.
func mounted(dir string) bool {
	var a, b unix.Stat_t
	return unix.Stat(dir, &a) == nil && unix.Stat(filepath.Dir(dir), &b) == nil && a.Dev != b.Dev
}

// ChecksumFile returns the SHA-256 of what a file or device holds.
func ChecksumFile(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatalf("read %s: %v", path, err)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// RandomFile writes size reproducible bytes to a new file and syncs it.
func RandomFile(t testing.TB, path string, size int64, seed uint64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	FillRandom(t, f, size, seed)
}

// FillRandom overwrites the first size bytes of f with reproducible ones and syncs it.
func FillRandom(t testing.TB, f *os.File, size int64, seed uint64) {
	t.Helper()
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(f, rand.NewChaCha8(key), size); err != nil {
		t.Fatalf("write %s: %v", f.Name(), err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}
