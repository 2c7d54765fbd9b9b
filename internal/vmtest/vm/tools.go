package vm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// toolPackages are the programs that the tests use, for guests that cannot run the
// host's. They are of the suite that the host has.
var toolPackages = []string{
	"attr", "bash", "bsdextrautils", "bsdutils", "btrfs-progs", "coreutils", "cpio", "dash", "diffutils", "dmsetup",
	"e2fsprogs", "f2fs-tools", "fdisk", "findutils", "grep", "gzip", "iproute2", "kmod", "login", "lvm2", "mawk", "mount",
	"procps", "sed", "strace", "tar", "util-linux", "util-linux-extra", "xfsprogs", "xz-utils",
}

const toolSuite = "bookworm"

// toolFolders hold, in Debian's merged tree, what packages put into folders of the root.
var toolFolders = []string{"bin", "sbin", "lib"}

// fetchTools returns a folder with the tools for a, which hide those of the host in a
// guest. They are only unpacked: none of their programs can run here.
func fetchTools(a architecture) (string, error) {
	return inCache("tools-"+a.name, findTools, func(dir string) error { return downloadTools(dir, a) })
}

// toolsComplete is written last.
const toolsComplete = "dmloop-complete"

func findTools(dir string) (string, error) {
	_, err := os.Stat(filepath.Join(dir, toolsComplete))
	return dir, err
}

func downloadTools(dir string, a architecture) error {
	for _, name := range toolFolders {
		if err := os.MkdirAll(filepath.Join(dir, "usr", name), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+name, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	apt, err := newApt(filepath.Join(dir, "apt"), toolSuite, a.name)
	if err != nil {
		return err
	}
	files, err := apt.withAllTheyNeed(toolPackages)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := unpackMerged(file, dir); err != nil {
			return err
		}
	}
	if err := apt.remove(); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, toolsComplete), nil, 0o644)
}

// unpackMerged unpacks a package below dir, whose links to folders stay: dpkg -x would
// replace them by folders.
func unpackMerged(file, dir string) error {
	unpack := exec.Command("tar", "-x", "-C", dir, "--keep-directory-symlink")
	content := exec.Command("dpkg-deb", "--fsys-tarfile", file)
	var err error
	if unpack.Stdin, err = content.StdoutPipe(); err != nil {
		return err
	}
	if err := content.Start(); err != nil {
		return err
	}
	out, err := unpack.CombinedOutput()
	if err = errors.Join(err, content.Wait()); err != nil {
		return fmt.Errorf("unpack %s: %w\n%s", file, err, out)
	}
	return nil
}
