package guestinit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/internal/vmtest/vm"
)

// A mount to make, in order.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
	}
	return nil
}

func doMounts(mounts ...mount) error {
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

// buildRoot makes the host's tree under a tmpfs overlay the root of this
// process and of all kernel threads, and returns the job.
func buildRoot(jobFile string) (vm.Job, error) {
	lower, work, err := hostTree()
	if err != nil {
		return vm.Job{}, err
	}
	// The job lies in a temporary folder, which the new root hides.
	job, err := vm.ReadJob(filepath.Join(lower, jobFile))
	if err != nil {
		return job, err
	}
	if lower == "/" {
		if err := loadFiles(filepath.Join(job.Modules, "kernel/fs/overlayfs/overlay.ko")); err != nil {
			return job, err
		}
	}
	if err := doMounts(mount{"tmpfs", work, "tmpfs", 0, "mode=0755"}); err != nil {
		return job, err
	}
	upper, workdir, root := work+"/upper", work+"/work", work+"/root"
	for _, dir := range []string{upper, workdir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return job, err
		}
	}
	layers := lower
	if job.Tools != "" {
		// A mount of its own, although the folder lies below the host's root: overlayfs
		// refuses a layer inside another (ELOOP).
		if err := doMounts(share(vm.ToolsTag, "/tools")); err != nil {
			return job, err
		}
		layers = "/tools:" + lower
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", layers, upper, workdir)
	err = doMounts(
		mount{"overlay", root, "overlay", 0, data},
		mount{lower, root + "/host", "", unix.MS_BIND, ""},
		mount{"devtmpfs", root + "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		mount{"proc", root + "/proc", "proc", 0, ""},
		mount{"sysfs", root + "/sys", "sysfs", 0, ""},
		mount{"devpts", root + "/dev/pts", "devpts", 0, "mode=0620,ptmxmode=0666"},
		mount{"tmpfs", root + "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		mount{"tmpfs", root + "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		mount{"tmpfs", root + "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		mount{"cgroup2", root + "/sys/fs/cgroup", "cgroup2", 0, ""},
	)
	if err != nil {
		return job, err
	}
	if _, err := os.Stat(root + "/sys/fs/bpf"); err == nil { // as systemd does
		if err := doMounts(mount{"bpf", root + "/sys/fs/bpf", "bpf", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=0700"}); err != nil {
			return job, err
		}
	}
	return job, enter(root)
}

// hostTree returns where the host's root is mounted read-only and a folder
// where a tmpfs can be mounted.
func hostTree() (lower, work string, err error) {
	modules, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return "", "", err
	}
	if _, err := os.Stat("/modules"); errors.Is(err, os.ErrNotExist) {
		// User Mode Linux: the kernel itself has mounted the host's root.
		return "/", "/tmp", nil
	}
	if err := loadFiles(modules...); err != nil { // in the order of their names
		return "", "", err
	}
	return "/host", "/upper", doMounts(share(vm.HostTag, "/host"))
}

// share is a folder of the host. Its files do not change in a guest's lifetime, so what
// was read may be kept.
func share(tag, target string) mount {
	return mount{tag, target, "9p", unix.MS_RDONLY, "trans=virtio,version=9p2000.L,cache=loose,msize=512000"}
}

// enter makes root the root directory. Kernel threads share process 1's root,
// so that module loading by the kernel finds modprobe there as well.
func enter(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", root, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}

// loadFiles loads modules whose dependencies are there.
func loadFiles(paths ...string) error {
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", path, err)
		}
	}
	return nil
}

// openChannels opens the three ways to the host.
func openChannels(kernel string) ([]*os.File, error) {
	var files []*os.File
	for i, name := range vm.Channels {
		path := vm.ConsoleOf(i)
		if kernel != vm.KernelUML {
			var err error
			if path, err = portOf(name); err != nil {
				return nil, err
			}
		}
		f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY, 0)
		if err != nil {
			return nil, err
		}
		if kernel == vm.KernelUML {
			if err := makeRaw(f); err != nil {
				return nil, err
			}
		}
		files = append(files, f)
	}
	return files, nil
}

// portOf finds the device of a named virtio port.
func portOf(name string) (string, error) {
	files, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return "", err
	}
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(text)) == name {
			return "/dev/" + filepath.Base(filepath.Dir(file)), nil
		}
	}
	return "", fmt.Errorf("no virtio port %s among %d", name, len(files))
}

// makeRaw keeps a terminal from changing what is written to it.
func makeRaw(f *os.File) error {
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return fmt.Errorf("%s: TCGETS: %w", f.Name(), err)
	}
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return fmt.Errorf("%s: TCSETS: %w", f.Name(), err)
	}
	return nil
}
