package vm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// keyring is where Debian keeps the keys of its archive.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// apt downloads packages of a suite and an architecture that the machine itself does
// not use. It keeps its lists apart, so the machine's own package state never changes.
type apt struct {
	dir     string
	options []string
}

// newApt reads the package lists of suite for arch from the mirror that the machine
// already uses for its main archive.
func newApt(dir, suite, arch string) (*apt, error) {
	mirror, err := machineMirror()
	if err != nil {
		return nil, err
	}
	for _, folder := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			return nil, err
		}
	}
	status := filepath.Join(dir, "status") // nothing is installed
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	list := filepath.Join(dir, "sources.list")
	line := fmt.Sprintf("deb [signed-by=%s] %s %s main\n", keyring, mirror, suite)
	if err := os.WriteFile(list, []byte(line), 0o644); err != nil {
		return nil, err
	}
	a := &apt{dir: dir, options: []string{
		"-q", "-o", "Dir::Etc::sourcelist=" + list, "-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::State::lists=" + filepath.Join(dir, "lists"), "-o", "Dir::State::status=" + status, "-o", "Dir::Cache=" + dir,
		"-o", "APT::Architecture=" + arch, "-o", "APT::Architectures=" + arch,
		"-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3",
	}}
	return a, command("apt-get", append(a.options, "update")...)
}

// machineMirror returns the address of the main archive in the machine's own
// sources, in whatever format they are kept.
func machineMirror() (string, error) {
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL) $(COMPONENT)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("apt-get indextargets: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 3 && f[1] == "Debian" && f[2] == "main" {
			return f[0], nil
		}
	}
	return "", errors.New("no Debian archive among the machine's package sources (run apt-get update)")
}

// packages returns the names of all kernel packages of the suite.
func (a *apt) packages() ([]string, error) {
	out, err := exec.Command("apt-cache", append(a.options, "pkgnames", "linux-")...).Output()
	if err != nil {
		return nil, fmt.Errorf("apt-cache pkgnames: %w", err)
	}
	return strings.Fields(string(out)), nil
}

// unpack downloads a package and unpacks it below dir.
func (a *apt) unpack(name, dir string) error {
	get := exec.Command("apt-get", append(a.options, "download", name)...)
	get.Dir = a.dir
	if out, err := get.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get download %s: %w\n%s", name, err, out)
	}
	files, err := filepath.Glob(filepath.Join(a.dir, name+"_*.deb"))
	if err != nil || len(files) != 1 {
		return fmt.Errorf("apt-get download %s left %d files", name, len(files))
	}
	return command("dpkg", "-x", files[0], dir)
}

// withAllTheyNeed downloads packages and those that they depend on, and returns the files.
func (a *apt) withAllTheyNeed(names []string) ([]string, error) {
	args := slices.Concat(a.options, []string{"install", "--download-only", "--no-install-recommends", "-y"}, names)
	if err := command("apt-get", args...); err != nil {
		return nil, err
	}
	return filepath.Glob(filepath.Join(a.dir, "archives/*.deb"))
}

// remove deletes lists and packages, which are as large as the kernels.
func (a *apt) remove() error { return os.RemoveAll(a.dir) }
