package image

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"dmloop/extents"
	"dmloop/internal/advice"

	"golang.org/x/sys/unix"
)

// leased is the problem of a file that cannot be opened before somebody gives up a
// lease. Whoever it is has been asked for it by the open.
func leased(fd int) extents.Problem {
	p := extents.Problem{
		Rule:    extents.OpenElsewhere,
		Message: "somebody, out of sight from here, holds a lease on the file and has been asked to give it up",
		Remedy:  advice.SeeLease,
	}
	var st unix.Statx_t
	f, err := os.Open("/proc/locks")
	if err != nil || unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO, &st) != nil {
		return p
	}
	defer f.Close()
	if pids := holders(f, "LEASE", st); len(pids) > 0 {
		names := make([]string, len(pids))
		for i, pid := range pids {
			names[i] = Opener{PID: pid, Comm: readLine(filepath.Join("/proc", strconv.Itoa(pid), "comm")), How: "lease"}.String()
		}
		p.Message = "somebody holds a lease on the file and has been asked to give it up: " + strings.Join(names, ", ")
	}
	return p
}

// LockHolders returns the processes that hold a lock (flock) on the file at path, as far
// as they are visible from here.
func LockHolders(path string) []int {
	var st unix.Statx_t
	f, err := os.Open("/proc/locks")
	if err != nil || unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO, &st) != nil {
		return nil
	}
	defer f.Close()
	return holders(f, "FLOCK", st)
}

// holders returns the processes that hold a lock of this kind on an inode, from the text
// of /proc/locks.
func holders(r io.Reader, kind string, st unix.Statx_t) (pids []int) {
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		// 1: LEASE  BREAKING  READ     4242 fe:00:131 0 EOF
		fields := strings.Fields(scanner.Text())
		if len(fields) < 6 || fields[1] != kind {
			continue
		}
		var major, minor uint32
		var inode uint64
		if n, _ := fmt.Sscanf(fields[5], "%x:%x:%d", &major, &minor, &inode); n != 3 || inode != st.Ino {
			continue
		}
		// btrfs shows another device here than in stat: the same major number, 0, must do.
		same := major == st.Dev_major && (minor == st.Dev_minor || major == 0)
		if pid, err := strconv.Atoi(fields[4]); err == nil && pid > 0 && same {
			pids = append(pids, pid)
		}
	}
	return pids
}

// provisioned is the problem of a file that a `dmloop provision` is at work on: it holds a
// lease, and ends as soon as anybody opens the file, with however little patience. So
// it is asked before.
func provisioned(fd int) *extents.Problem {
	var st unix.Statx_t
	f, err := os.Open("/proc/locks")
	if err != nil {
		return nil
	}
	defer f.Close()
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO, &st) != nil {
		return nil
	}
	for _, pid := range holders(f, "LEASE", st) {
		line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if args := strings.Split(string(line), "\x00"); err == nil && pid != os.Getpid() && slices.Contains(args[1:], "provision") {
			return &extents.Problem{
				Rule:    extents.OpenElsewhere,
				Message: fmt.Sprintf("dmloop provision is working on it (process %d), and would stop if somebody opened it", pid),
				Remedy:  advice.AwaitProvision,
			}
		}
	}
	return nil
}
