// Package udev sees to it that /dev/mapper/NAME is there when a command says that
// the device is, and gone when it says that it is gone: through udev's cookies where
// udevd runs and dmsetup's rules are installed, with its own links where not.
package udev

import (
	"os"
	"path/filepath"
	"strings"
)

// DisableVariable is the environment variable that, set to anything, makes
// libdevmapper and dmloop leave udev alone.
const DisableVariable = "DM_DISABLE_UDEV"

// Host is where this machine's udev, processes and nodes are. Fields are folders,
// so that tests can use others.
type Host struct {
	Run   string   // /run
	Proc  string   // /proc
	Dev   string   // /dev
	Sys   string   // /sys
	Rules []string // rules folders, the one that overrides the others first
}

// Local returns this machine's folders.
func Local() Host {
	return Host{
		Run: "/run", Proc: "/proc", Dev: "/dev", Sys: "/sys",
		Rules: []string{"/etc/udev/rules.d", "/run/udev/rules.d", "/usr/local/lib/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d"},
	}
}

// Running reports whether udevd will answer cookies, and if not, why: nobody would
// ever count down a cookie that we wait for.
func (h Host) Running() (bool, string) {
	if _, set := os.LookupEnv(DisableVariable); set {
		return false, DisableVariable + " is set"
	}
	if _, err := os.Stat(filepath.Join(h.Run, "udev", "control")); err != nil {
		return false, "udevd does not run"
	}
	if !h.sameIPC() {
		return false, "udevd may be in another IPC namespace"
	}
	if !h.notifies() {
		return false, "no udev rule *dm-notify.rules is installed (package dmsetup)"
	}
	return true, ""
}

// sameIPC reports whether this process shares semaphores with process 1, and so
// with udevd. What cannot be read counts as no.
func (h Host) sameIPC() bool {
	own, err := os.Readlink(filepath.Join(h.Proc, "self", "ns", "ipc"))
	if err != nil {
		return false
	}
	first, err := os.Readlink(filepath.Join(h.Proc, "1", "ns", "ipc"))
	return err == nil && own == first
}

// notifies reports whether a rule is in force that counts cookies down. An empty
// file, or a link to /dev/null, hides the file of the same name in later folders.
func (h Host) notifies() bool {
	hidden := map[string]bool{}
	for _, folder := range h.Rules {
		files, err := filepath.Glob(filepath.Join(folder, "*dm-notify.rules"))
		if err != nil {
			continue
		}
		for _, file := range files {
			name := filepath.Base(file)
			if hidden[name] {
				continue
			}
			hidden[name] = true
			text, err := os.ReadFile(file)
			if err == nil && strings.Contains(string(text), "udevcomplete") {
				return true
			}
		}
	}
	return false
}
