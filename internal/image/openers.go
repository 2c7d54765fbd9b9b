package image

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/blockdev"
	"dmloop/internal/kernlist"
)

// Opener is somebody who has a file open.
type Opener struct {
	PID  int    `json:"pid"`  // 0 for the kernel
	Comm string `json:"comm"` // program, or the loop device
	How  string `json:"how"`  // "open", "mapped", "loop" or Scans
}

// Scans is the How of a process that has the file open and listens to what others open
// (fanotify): an on-access scanner, most likely, that reads the file because of us.
const Scans = "on-access scanner"

func (o Opener) String() string {
	if o.PID == 0 {
		return o.Comm
	}
	return fmt.Sprintf("%s (pid %d, %s)", o.Comm, o.PID, o.How)
}

// Openers lists who has the same file as f open or mapped, as far as /proc and /sys
// show it to the caller: this process is left out, and so is everything in PID
// namespaces that are not visible. An empty list therefore proves nothing.
func Openers(f *os.File) ([]Opener, error) {
	var self unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO, &self); err != nil {
		return nil, fmt.Errorf("%s: statx: %w", f.Name(), err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var openers []Opener
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		dir := filepath.Join("/proc", entry.Name())
		if open, scans := hasOpen(dir, pid, int(f.Fd()), self); open {
			o := Opener{PID: pid, Comm: readLine(filepath.Join(dir, "comm")), How: "open"}
			if scans {
				o.How = Scans
			}
			openers = append(openers, o)
		} else if hasMapped(dir, self) {
			openers = append(openers, Opener{PID: pid, Comm: readLine(filepath.Join(dir, "comm")), How: "mapped"})
		}
	}
	return append(openers, loopDevices(self)...), nil
}

// hasOpen reports whether a descriptor of the process in dir is the file, and whether
// the process has one of fanotify. A descriptor of the very open description own, which
// the guard has of an image that it was handed, is nobody else's. Processes end and
// permissions are often missing, so errors mean no.
func hasOpen(dir string, pid, own int, self unix.Statx_t) (open, scans bool) {
	fds, _ := filepath.Glob(filepath.Join(dir, "fd", "[0-9]*"))
	for _, fd := range fds {
		if isInode(fd, self) {
			n, err := strconv.Atoi(filepath.Base(fd))
			open = open || err != nil || !sameDescription(pid, n, own)
		}
	}
	if open {
		scans = slices.ContainsFunc(fds, func(fd string) bool {
			to, err := os.Readlink(fd)
			return err == nil && to == "anon_inode:[fanotify]"
		})
	}
	return open, scans
}

// sameDescription reports whether the descriptor fd of a process and our own are the
// same open description. A kernel without kcmp(2) knows of none.
func sameDescription(pid, fd, own int) bool {
	const kcmpFile = 0 // KCMP_FILE in linux/kcmp.h
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid), uintptr(os.Getpid()), kcmpFile, uintptr(fd), uintptr(own), 0)
	return errno == 0 && order == 0
}

// hasMapped reports whether the process in dir has mapped the file.
func hasMapped(dir string, self unix.Statx_t) bool {
	text, err := os.ReadFile(filepath.Join(dir, "maps"))
	if err != nil {
		return false
	}
	// btrfs shows another device number in maps than in stat, so the inode number
	// picks the candidates and the link in map_files decides where it can be read.
	ranges := parseMaps(string(text), self.Ino)
	return slices.ContainsFunc(ranges, func(r string) bool { return isInode(filepath.Join(dir, "map_files", r), self) })
}

// parseMaps returns the address ranges ("start-end") in the text of /proc/PID/maps
// that map an inode of that number.
func parseMaps(text string, inode uint64) []string {
	want := strconv.FormatUint(inode, 10)
	var ranges []string
	for line := range kernlist.Lines(text) {
		// 7f0000000000-7f0000001000 rw-s 00000000 07:00 12 /path
		fields := kernlist.Split(line)
		if len(fields) >= 6 && fields[4] == want {
			ranges = append(ranges, fields[0])
		}
	}
	return ranges
}

// loopDevices lists the loop devices that lie on the file. The kernel opens it for
// them, so that no process shows it. Where they may not be asked the paths have to do, which are those
// of the mount namespace where the device was made.
func loopDevices(self unix.Statx_t) []Opener {
	var found []Opener
	loops, _ := blockdev.Loops()
	for _, l := range loops {
		same := l.Inode == self.Ino && l.Device == dmtable.Device{Major: self.Dev_major, Minor: self.Dev_minor}
		if same || isInode(l.File, self) {
			found = append(found, Opener{Comm: l.Path, How: "loop"})
		}
	}
	return found
}

// isInode reports whether path leads to the file. It does not make network file
// systems ask their server, which may be gone.
func isInode(path string, self unix.Statx_t) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st)
	return err == nil && sameInode(st, self)
}

// readLine returns the text of a one-line file of the kernel, or "" when it is gone.
func readLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(text), "\n")
}

func sameInode(a, b unix.Statx_t) bool {
	return a.Ino == b.Ino && a.Dev_major == b.Dev_major && a.Dev_minor == b.Dev_minor
}
