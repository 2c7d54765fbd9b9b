package swap

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/internal/kernlist"
)

// TablePath is where the kernel lists the active swap areas. poll(2) on it
// reports POLLPRI whenever the list changes.
const TablePath = "/proc/swaps"

// Entry is one active swap area, a row of /proc/swaps.
type Entry struct {
	// Path is what the kernel prints, escapes undone. " (deleted)" at its end says that
	// the file has lost this name, or is the end of the name.
	Path     string
	Type     string // "file" or "partition"
	Size     int64  // usable bytes
	Used     int64  // bytes that hold paged-out memory
	Priority int
}

// ParseTable reads the format of /proc/swaps (swap_show in mm/swapfile.c): a
// line of titles, then a path with octal escapes and four fields a line, sizes
// in KiB.
func ParseTable(text string) ([]Entry, error) {
	var out []Entry
	n := 0
	for line := range kernlist.Lines(text) {
		if n++; n == 1 {
			continue // titles
		}
		e, err := parseEntry(line)
		if err != nil {
			return nil, fmt.Errorf("line %d of the list of swap areas: %w", n, err)
		}
		out = append(out, e)
	}
	return out, nil
}

func parseEntry(line string) (Entry, error) {
	f := kernlist.Split(line)
	if len(f) != 5 {
		return Entry{}, fmt.Errorf("%d fields, want 5: %q", len(f), line)
	}
	e := Entry{Path: kernlist.Unescape(f[0]), Type: f[1]}
	for _, v := range []struct {
		to   *int64
		text string
	}{{&e.Size, f[2]}, {&e.Used, f[3]}} {
		kib, err := strconv.ParseInt(v.text, 10, 53)
		if err != nil {
			return Entry{}, err
		}
		*v.to = kib << 10
	}
	var err error
	e.Priority, err = strconv.Atoi(f[4])
	return e, err
}

// Table returns the active swap areas of this kernel. A kernel without swap has
// no list: that is no area.
func Table() ([]Entry, error) {
	text, err := os.ReadFile(TablePath)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return ParseTable(string(text))
}

// deleted is what d_path of fs/d_path.c adds to the last name of a file without one.
const deleted = " (deleted)"

// Stat finds what the kernel lists, and reports whether it is there. A name that ends as
// the mark of a deleted file does is a name like any other when there is such a file;
// only when there is none the name without the mark is looked up, which may have been
// given again. The kernel's paths have no symbolic links in them, and none is followed.
func (e Entry) Stat() (unix.Stat_t, bool) {
	st, err := lstat(e.Path)
	if plain, marked := strings.CutSuffix(e.Path, deleted); err != nil && marked {
		st, err = lstat(plain)
	}
	return st, err == nil
}

func lstat(path string) (st unix.Stat_t, err error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	return st, unix.Fstat(fd, &st)
}

// Lookup finds f among the active swap areas, by device and inode, and tells
// whether it is there. It is for show: a file that was renamed from another
// mount namespace is not found. Active is the proof.
func Lookup(f *os.File) (Entry, bool, error) {
	var own unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &own); err != nil {
		return Entry{}, false, &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	all, err := Table()
	if err != nil {
		return Entry{}, false, err
	}
	for _, e := range all {
		if st, found := e.Stat(); found && st.Dev == own.Dev && st.Ino == own.Ino {
			return e, true, nil
		}
	}
	return Entry{}, false, nil
}
