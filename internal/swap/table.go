package swap

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// TablePath is where the kernel lists the active swap areas. poll(2) on it
// reports POLLPRI whenever the list changes.
const TablePath = "/proc/swaps"

// Entry is one active swap area, a row of /proc/swaps.
type Entry struct {
	Path     string // as the kernel prints it, escapes undone; without " (deleted)"
	Deleted  bool   // the kernel printed " (deleted)": the file has lost its name, or its name ends so
	Type     string // "file" or "partition"
	Size     int64  // usable bytes
	Used     int64  // bytes that hold paged-out memory
	Priority int
}

// ParseTable reads the format of /proc/swaps (swap_show in mm/swapfile.c): a
// line of titles, then a path with octal escapes and four fields a line, sizes
// in KiB.
func ParseTable(r io.Reader) ([]Entry, error) {
	sc := bufio.NewScanner(r)
	var out []Entry
	for n := 1; sc.Scan(); n++ {
		if n == 1 {
			continue // titles
		}
		e, err := parseEntry(sc.Text())
		if err != nil {
			return nil, fmt.Errorf("line %d of the list of swap areas: %w", n, err)
		}
		out = append(out, e)
	}
	return out, sc.Err()
}

func parseEntry(line string) (Entry, error) {
	f := strings.Fields(line)
	if len(f) != 5 {
		return Entry{}, fmt.Errorf("%d fields, want 5: %q", len(f), line)
	}
	e := Entry{Type: f[1]}
	e.Path, e.Deleted = strings.CutSuffix(unescape(f[0]), " (deleted)")
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

// unescape undoes mangle_path of fs/seq_file.c: \ooo stands for the byte of
// that octal number. Anything else is taken as it stands.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Table returns the active swap areas of this kernel. A kernel without swap has
// no list: that is no area.
func Table() ([]Entry, error) {
	f, err := os.Open(TablePath)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ParseTable(f)
}

// Lookup finds f among the active swap areas, by device and inode, and tells
// whether it is there. It is for show: a file that was renamed from another
// mount namespace is not found. Active is the proof.
func Lookup(f *os.File) (Entry, bool, error) {
	own, err := f.Stat()
	if err != nil {
		return Entry{}, false, err
	}
	all, err := Table()
	if err != nil {
		return Entry{}, false, err
	}
	for _, e := range all {
		if st, err := os.Stat(e.Path); err == nil && os.SameFile(own, st) {
			return e, true, nil
		}
	}
	return Entry{}, false, nil
}
