// Package helper starts the few programs of the system that dmloop cannot do without:
// those of systemd, and the makers of an initramfs.
package helper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Folders are where programs are looked for, whatever the environment says: dmloop runs
// as root, and $PATH may be another user's. The last one is that of NixOS.
var Folders = []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin", "/run/current-system/sw/bin"}

// ErrUntrusted says that a program is where it should be and that users other than root may
// change it.
var ErrUntrusted = errors.New("does not belong to root alone")

// Find returns the absolute path of a program in Folders, of a name without slashes.
func Find(name string) (string, error) { return find(Folders, name, 0) }

func find(folders []string, name string, root uint32) (string, error) {
	if name == "" || strings.ContainsRune(name, '/') {
		return "", fmt.Errorf("%q is not the name of a program", name)
	}
	for _, folder := range folders {
		path := filepath.Join(folder, name)
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
			continue
		}
		for _, checked := range []string{folder, path} {
			if err := alone(checked, root); err != nil {
				return "", err
			}
		}
		return path, nil
	}
	return "", fmt.Errorf("the program %s is in none of %s: %w", name, strings.Join(folders, ", "), exec.ErrNotFound)
}

// alone fails for what users other than root may write.
func alone(path string, root uint32) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid != root || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s %w", path, ErrUntrusted)
	}
	return nil
}

// Command is a program of Folders, not started. It and the programs that it starts find
// others in Folders only.
func Command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	path, err := Find(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, "PATH=") }),
		"PATH="+strings.Join(Folders, ":"))
	return cmd, nil
}

// ExitCode returns the exit code of a program whose Run returned err, and false when it did
// not come to an end of its own.
func ExitCode(err error) (code int, ended bool) {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, true
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode(), true
	}
	return 0, false
}
