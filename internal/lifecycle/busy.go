package lifecycle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/dm"
	"dmloop/internal/image"
	"dmloop/internal/manifest"
	"dmloop/internal/swap"
)

// openNow lists the mapping's devices that somebody has open, its own partitions
// apart, and refuses when one is in use and the options say nothing of that.
// Something that has it open for a moment, as a udev worker does, is no reason to
// refuse: removing tries again.
func (s *System) openNow(conn *dm.Conn, m manifest.Manifest, o UnmapOptions) ([]dm.Ref, error) {
	var open []dm.Ref
	for _, ref := range layers(m) {
		info, err := conn.Info(ref)
		if errors.Is(err, dm.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		own := 0 // partitions of ours on top
		if info.UUID == m.UUID {
			own = len(m.Parts)
		}
		if info.OpenCount <= own {
			continue
		}
		if !o.Force && !o.Deferred && s.heldFirmly(info.Device) {
			return nil, s.busy(info, nil)
		}
		open = append(open, ref)
	}
	return open, nil
}

// cutOff lets every further access fail. What users have not written yet is written
// first, unless the blocks may not be ours any more.
func (s *System) cutOff(conn *dm.Conn, m manifest.Manifest, before manifest.State) error {
	table := dmtable.ErrorTable(m.Table.Size())
	ref := dm.ByUUID(m.UUID)
	if before != manifest.Healthy && before != manifest.Weakened {
		_, err := conn.ReplaceNow(ref, table, 0)
		return err
	}
	if _, err := conn.Load(ref, table, m.ReadOnly); err != nil {
		return err
	}
	_, err := conn.Resume(ref, dm.ResumeOptions{})
	return err
}

// busy says who uses the device.
func (s *System) busy(info dm.Info, cause error) error {
	message := "in use"
	if users := s.users(info.Device); len(users) > 0 {
		message += " by " + strings.Join(users, ", ")
	}
	return &Error{Class: Busy, Subject: info.Name, Message: message, Err: cause,
		Hint: "stop the users, or use --deferred (remove at last close) or --force (let their I/O fail)"}
}

// heldFirmly reports whether waiting for the device's users is of no use.
func (s *System) heldFirmly(dev dmtable.Device) bool {
	for _, u := range s.users(dev) {
		if !strings.HasPrefix(u, "process") {
			return true
		}
	}
	return false
}

// users lists what is seen to use a block device: mounts, swap, devices on top of it,
// and processes that have its node open.
func (s *System) users(dev dmtable.Device) []string {
	var users []string
	mounts, err := image.MountsOf(dev)
	if err != nil {
		s.log.Debug("mounts cannot be read", "error", err)
	}
	for _, m := range mounts {
		users = append(users, "mount "+m.Point)
	}
	areas, err := swap.Table()
	if err != nil {
		s.log.Debug("swap areas cannot be read", "error", err)
	}
	for _, a := range areas {
		if st, found := a.Stat(); found && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == unix.Mkdev(dev.Major, dev.Minor) {
			users = append(users, "swap (swapoff "+a.Path+")")
		}
	}
	holders, err := os.ReadDir(filepath.Join(s.sysfs, "dev/block", dev.String(), "holders"))
	if err != nil {
		s.log.Debug("holders cannot be read", "error", err)
	}
	for _, h := range holders {
		users = append(users, "device "+h.Name())
	}
	return append(users, processes(dev)...)
}

// processes lists who has the device's node open, as far as /proc shows it.
func processes(dev dmtable.Device) []string {
	var found []string
	pids, _ := filepath.Glob("/proc/[0-9]*")
	rdev := unix.Mkdev(dev.Major, dev.Minor)
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
			if unix.Stat(dir+"/fd/"+fd.Name(), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != rdev {
				continue
			}
			pid, _ := strconv.Atoi(filepath.Base(dir))
			comm, _ := os.ReadFile(dir + "/comm")
			found = append(found, fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(comm))))
			break
		}
	}
	return found
}
