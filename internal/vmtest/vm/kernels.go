package vm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A kernelSource says where Debian keeps a kernel.
type kernelSource struct {
	arch     architecture
	suite    string
	packages *regexp.Regexp // of which the newest version is taken; group 1 is the version
	with     []string       // further packages of that version, as prefixes of its name
}

// Names of the kernels that a guest can run.
const (
	KernelUML = "uml"
	Kernel61  = "6.1"
	Kernel612 = "6.12"
	KernelNew = "new"

	KernelArm64         = "arm64"
	KernelArm64Pages16K = "arm64-16k"
)

// Kernels lists the names of the kernels that all tests run with, the quickest first.
var Kernels = []string{KernelUML, Kernel61, Kernel612, KernelNew}

// ArmKernels lists those of arm64, with pages of 4 and of 16 KiB.
var ArmKernels = []string{KernelArm64, KernelArm64Pages16K}

// AllKernels lists the names of all kernels.
func AllKernels() []string { return slices.Concat(Kernels, ArmKernels) }

var sources = map[string]kernelSource{
	Kernel61: {amd64, "bookworm", regexp.MustCompile(`^linux-image-(6\.1\.\d+-\d+-amd64)$`), nil},
	// Newer packages have no ABI number of their own.
	Kernel612: {amd64, "trixie", regexp.MustCompile(`^linux-image-(6\.12\.\d+\+deb13-amd64)$`), nil},
	// Backports split image, modules, and the lists of what is built in.
	KernelNew: {amd64, "trixie-backports", regexp.MustCompile(`^linux-binary-(\d+\.\d+\.\d+\+deb13-amd64)$`), []string{"linux-modules-", "linux-base-"}},

	KernelArm64:         {arm64, "trixie", regexp.MustCompile(`^linux-image-(6\.12\.\d+\+deb13-arm64)$`), nil},
	KernelArm64Pages16K: {arm64, "trixie", regexp.MustCompile(`^linux-image-(6\.12\.\d+\+deb13-arm64-16k)$`), nil},
}

// kernelFiles are the files of an unpacked kernel.
type kernelFiles struct {
	image   string // the bootable kernel
	modules string // folder with modules.dep
	archive string // initramfs with the modules for the start
}

// CacheDir is where kernels are kept: $DMLOOP_CACHE, or a folder of the system
// for root, or of the user.
func CacheDir() (string, error) {
	if dir := os.Getenv("DMLOOP_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	if os.Geteuid() == 0 {
		return "/var/cache/dmloop", nil
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "dmloop"), err
}

// Fetch makes sure that the named kernel, and what its guests need, is in the cache.
func Fetch(name string) error {
	if name == KernelUML {
		_, err := umlModules()
		return err
	}
	_, err := fetch(name)
	if arch := sources[name].arch; err == nil && arch.foreign() {
		_, err = fetchTools(arch)
	}
	return err
}

// fetch returns the files of the named kernel, downloading it when the cache
// does not hold it.
func fetch(name string) (kernelFiles, error) {
	src, ok := sources[name]
	if !ok {
		return kernelFiles{}, fmt.Errorf("unknown kernel %q: one of %s", name, strings.Join(AllKernels(), " "))
	}
	files, err := inCache("kernel-"+name, findKernel, func(dir string) error { return download(dir, src) })
	if err != nil {
		return files, fmt.Errorf("kernel %s: %w", name, err)
	}
	return files, nil
}

// inCache returns what find finds in the named folder of the cache. If that fails, fill
// has to make the folder's content first. Runners that need the same wait for each other.
func inCache[T any](name string, find func(dir string) (T, error), fill func(dir string) error) (found T, err error) {
	cache, err := CacheDir()
	if err != nil {
		return found, err
	}
	dir := filepath.Join(cache, name)
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return found, err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return found, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return found, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if found, err := find(dir); err == nil {
		return found, nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return found, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return found, err
	}
	if err := fill(dir); err != nil {
		return found, err
	}
	return find(dir)
}

// findKernel looks up the files of an unpacked kernel in dir.
func findKernel(dir string) (kernelFiles, error) {
	files := kernelFiles{image: filepath.Join(dir, "vmlinux"), archive: filepath.Join(dir, "modules.cpio")}
	for _, file := range []string{files.image, files.archive} { // the archive is written last
		if _, err := os.Stat(file); err != nil {
			return files, err
		}
	}
	for _, glob := range []string{"lib/modules/*/modules.dep", "usr/lib/modules/*/modules.dep"} {
		if found, _ := filepath.Glob(filepath.Join(dir, glob)); len(found) == 1 {
			files.modules = filepath.Dir(found[0])
		}
	}
	if files.modules == "" {
		return files, errors.New("no modules in " + dir)
	}
	return files, nil
}

// download fetches and unpacks the newest kernel of src into dir.
func download(dir string, src kernelSource) error {
	apt, err := newApt(filepath.Join(dir, "apt"), src.suite, src.arch.name)
	if err != nil {
		return err
	}
	names, err := apt.packages()
	if err != nil {
		return err
	}
	version := newestVersion(names, src.packages)
	if version == "" {
		return fmt.Errorf("no package like %s in %s", src.packages, src.suite)
	}
	prefixes := src.with
	for _, name := range names {
		if m := src.packages.FindStringSubmatch(name); m != nil && m[1] == version {
			prefixes = append(slices.Clone(prefixes), strings.TrimSuffix(name, version))
			break
		}
	}
	for _, prefix := range prefixes {
		if err := apt.unpack(prefix+version, dir); err != nil {
			return err
		}
	}
	if err := apt.remove(); err != nil {
		return err
	}
	if err := unpackImage(dir); err != nil {
		return err
	}
	return prepareModules(dir, version)
}

// prepareModules writes what depmod would have written when installing, and
// the archive for the start.
func prepareModules(dir, version string) error {
	if _, err := os.Stat(filepath.Join(dir, "lib")); errors.Is(err, os.ErrNotExist) {
		// depmod looks for modules in lib only.
		if err := os.Symlink("usr/lib", filepath.Join(dir, "lib")); err != nil {
			return err
		}
	}
	if err := command("depmod", "-b", dir, version); err != nil {
		return err
	}
	temp := filepath.Join(dir, "modules.cpio.new")
	f, err := os.Create(temp)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := writeModulesArchive(f, filepath.Join(dir, "lib/modules", version)); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(dir, "modules.cpio"))
}

// newestVersion returns the highest version among the names that match.
func newestVersion(names []string, pattern *regexp.Regexp) string {
	best := ""
	for _, name := range names {
		if m := pattern.FindStringSubmatch(name); m != nil && compareVersions(m[1], best) > 0 {
			best = m[1]
		}
	}
	return best
}

var digits = regexp.MustCompile(`\d+|\D+`)

// compareVersions compares runs of digits as numbers and the rest as text.
func compareVersions(a, b string) int {
	return slices.CompareFunc(digits.FindAllString(a, -1), digits.FindAllString(b, -1), func(x, y string) int {
		if x[0] <= '9' && y[0] <= '9' && len(x) != len(y) {
			return len(x) - len(y)
		}
		return strings.Compare(x, y)
	})
}

// command runs a tool and returns its output with the error.
func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
