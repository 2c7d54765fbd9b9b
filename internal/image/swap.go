package image

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// SwapStatus tells whether the kernel uses the file as swap space now.
type SwapStatus struct {
	Active  bool     `json:"active"`
	Unknown []string `json:"unknown"` // active swap files that cannot be looked at from here, one of which may be this file
}

// swapStatus compares the file with every file in /proc/swaps. A kernel without
// swap has no such list.
func (i *Image) swapStatus() (SwapStatus, error) {
	f, err := os.Open("/proc/swaps")
	if errors.Is(err, os.ErrNotExist) {
		return SwapStatus{}, nil
	}
	if err != nil {
		return SwapStatus{}, err
	}
	defer f.Close()
	files, err := parseSwaps(f)
	if err != nil {
		return SwapStatus{}, err
	}
	self, err := i.statx(unix.STATX_INO)
	if err != nil {
		return SwapStatus{}, err
	}
	var status SwapStatus
	for _, path := range files {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_INO|unix.STATX_TYPE, &st)
		switch {
		case err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG:
			status.Unknown = append(status.Unknown, path)
		case sameInode(st, self):
			status.Active = true
		}
	}
	if status.Active {
		status.Unknown = nil
	}
	return status, nil
}

// SwapProbe reports whether the kernel refuses to let f be changed because it is
// swap: a new shared writable mapping of a swap file gives ETXTBSY
// (mm/mmap.c, 4.0 to 7.3), and has no effect otherwise. f must be open for reading and writing.
func SwapProbe(f *os.File) (bool, error) {
	page, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if errors.Is(err, unix.ETXTBSY) {
		return true, nil
	}
	if err != nil {
		return false, os.NewSyscallError("mmap", err)
	}
	return false, os.NewSyscallError("munmap", unix.Munmap(page))
}

// parseSwaps returns the paths of the swap files (not partitions) in the text of
// /proc/swaps. A path has blanks, tabs, newlines and backslashes as octal escapes.
func parseSwaps(r io.Reader) ([]string, error) {
	scanner := bufio.NewScanner(r)
	scanner.Scan() // the heading
	var files []string
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		if len(fields) >= 2 && fields[1] == "file" {
			files = append(files, unescape(fields[0]))
		}
	}
	return files, scanner.Err()
}

// unescape replaces the octal escapes \ooo that seq_path writes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func sameInode(a, b unix.Statx_t) bool {
	return a.Ino == b.Ino && a.Dev_major == b.Dev_major && a.Dev_minor == b.Dev_minor
}
