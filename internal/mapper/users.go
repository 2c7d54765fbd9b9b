package mapper

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/blockdev"
	"dmloop/internal/kernlist"
	"dmloop/internal/swap"
)

// outOfSight stands for users of a device that neither /proc nor /sys shows here.
const outOfSight = "somebody out of sight from here: a process in another PID namespace, a file system unmounted lazily (umount -l), or the kernel itself"

// Named lists who uses a block device that is in use, for people.
func (m *Mapper) Named(dev dmtable.Device) string {
	if users := m.Users(dev); len(users) > 0 {
		return strings.Join(users, ", ")
	}
	return outOfSight
}

// NamedPath is Named for the device whose node is at path.
func (m *Mapper) NamedPath(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return outOfSight
	}
	return m.Named(dmtable.DeviceOf(st.Rdev))
}

// Users lists what is seen to use a block device: mounts in all mount namespaces, swap,
// devices on top of it, and processes that have its node open.
func (m *Mapper) Users(dev dmtable.Device) []string {
	users := m.mountsOf(dev)
	areas, err := swap.Table()
	if err != nil {
		m.Log.Debug("swap areas cannot be read", "error", err)
	}
	for _, a := range areas {
		if st, found := a.Stat(); found && st.Mode&unix.S_IFMT == unix.S_IFBLK && dmtable.DeviceOf(st.Rdev) == dev {
			users = append(users, "swap (swapoff "+a.Path+")")
		}
	}
	holders, err := blockdev.Holders(m.Sysfs, dev)
	if err != nil {
		m.Log.Debug("holders cannot be read", "error", err)
	}
	for _, name := range holders {
		users = append(users, "device "+name)
	}
	loops, err := blockdev.Loops()
	if err != nil {
		m.Log.Debug("loop devices cannot be read", "error", err)
	}
	for _, l := range loops {
		if l.Block == dev {
			users = append(users, "loop device "+l.Path)
		}
	}
	return append(users, processes(dev)...)
}

// mountsOf lists where the device is mounted: here, and where it is mounted elsewhere in the
// other mount namespaces, each of which is seen through one of its processes. Services have
// namespaces of their own that show the same mounts.
func (m *Mapper) mountsOf(dev dmtable.Device) (users []string) {
	seen, points := map[string]bool{}, map[string]bool{}
	others, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range append([]string{"/proc/self"}, others...) {
		namespace, err := os.Readlink(filepath.Join(dir, "ns/mnt"))
		if err != nil || seen[namespace] {
			continue // gone, not ours to see, or looked at
		}
		seen[namespace] = true
		text, err := os.ReadFile(filepath.Join(dir, "mountinfo"))
		if err != nil {
			m.Log.Debug("mounts cannot be read", "error", err)
			continue
		}
		mounts, err := kernlist.ParseMounts(string(text))
		if err != nil {
			m.Log.Debug("mounts cannot be read", "error", err)
		}
		for _, on := range mounts {
			if on.Major != dev.Major || on.Minor != dev.Minor || points[on.Point] {
				continue
			}
			points[on.Point] = true
			user := "mount " + on.Point
			if dir != "/proc/self" {
				user += " in the mount namespace of " + processName(dir)
			}
			users = append(users, user)
		}
	}
	return users
}

// processes lists who has the device's node open, as far as /proc shows it.
func processes(dev dmtable.Device) []string {
	var found []string
	pids, _ := filepath.Glob("/proc/[0-9]*")
	own := fmt.Sprintf("/proc/%d", os.Getpid()) // what a shell has open, it passes on
	for _, dir := range pids {
		if dir == own {
			continue
		}
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue // gone, or not ours to see
		}
		for _, fd := range fds {
			var st unix.Stat_t
			if unix.Stat(dir+"/fd/"+fd.Name(), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || dmtable.DeviceOf(st.Rdev) != dev {
				continue
			}
			found = append(found, processName(dir))
			break
		}
	}
	return found
}

// processName is what people know a process by, of its folder in /proc.
func processName(dir string) string {
	pid, _ := strconv.Atoi(filepath.Base(dir))
	comm, _ := os.ReadFile(dir + "/comm")
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(comm)))
}

// HeldFirmly reports whether waiting for the device's users is of no use.
func (m *Mapper) HeldFirmly(dev dmtable.Device) bool {
	for _, u := range m.Users(dev) {
		if !strings.HasPrefix(u, "process") {
			return true
		}
	}
	return false
}
