package bootvm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// partitionStart is where the only partition of a disk begins.
const partitionStart = 1 << 20

// host runs a program on the host.
func host(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// hostInput is host with text on standard input.
func hostInput(t testing.TB, input string, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// EmptyDisk makes a sparse file.
func EmptyDisk(t testing.TB, dir, name string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, name)
	f, err := os.Create(path)
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// PartitionedDisk makes a disk with one GPT partition, which is left empty.
func PartitionedDisk(t testing.TB, dir, name string, size int64) string {
	t.Helper()
	path := EmptyDisk(t, dir, name, size)
	hostInput(t, "label: gpt\nstart=2048\n", "sfdisk", "-q", path)
	return path
}

// RootDisk makes a disk whose partition is an ext4 file system with a tree in it.
func RootDisk(t testing.TB, dir, name, tree, uuid string, size int64) string {
	t.Helper()
	path := PartitionedDisk(t, dir, name, size)
	blocks := (size - 2*partitionStart) / 4096
	host(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-U", uuid, "-d", tree, "-E", fmt.Sprintf("offset=%d,nodiscard", partitionStart), path, fmt.Sprint(blocks))
	return path
}

// PlainFilesystem makes a file that is an ext4 file system with a tree in it.
func PlainFilesystem(t testing.TB, dir, name, tree string, size int64) string {
	t.Helper()
	path := EmptyDisk(t, dir, name, size)
	host(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", tree, "-E", "nodiscard", path)
	return path
}

// Copy makes a copy of a disk, holes and all.
func Copy(t testing.TB, from, to string) string {
	t.Helper()
	host(t, "cp", "--sparse=always", from, to)
	return to
}

// Fsck checks the ext4 file system in a disk's partition. Its journal has to be empty:
// after replaying one, e2fsck does not find its way back to the offset.
func Fsck(t testing.TB, disk string) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-fy", fmt.Sprintf("%s?offset=%d", disk, partitionStart)).CombinedOutput()
	if err == nil {
		return
	}
	var exit *exec.ExitError
	if ok := asExit(err, &exit); !ok || exit.ExitCode() > 1 || strings.Contains(string(out), "FIXED") {
		t.Errorf("e2fsck %s: %v\n%s", disk, err, out)
	}
}

// Extract reads a file out of the ext4 file system in a disk's partition.
func Extract(t testing.TB, disk, inside, to string) {
	t.Helper()
	host(t, "debugfs", "-R", fmt.Sprintf("dump %s %s", inside, to), fmt.Sprintf("%s?offset=%d", disk, partitionStart))
	if info, err := os.Stat(to); err != nil || info.Size() == 0 {
		t.Fatalf("%s is not in %s: %v", inside, disk, err)
	}
}
