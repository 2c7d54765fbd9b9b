// Package kernlist reads lines of fields as the kernel writes them in /proc, and as
// fstab(5) and dmlooptab have them: fields are separated by blanks and tabs, nothing else,
// and a byte that a field cannot hold is written as a backslash and three octal digits.
//
// The names in such lists are chosen by users. strings.Fields and bufio.Scanner, which
// part a line at other characters too (U+00A0, U+0085, U+3000) and give up at a long
// one, let a name forge or hide a line.
package kernlist

import (
	"fmt"
	"iter"
	"strconv"
	"strings"
)

// Lines yields the lines of a text without their ends. Only a newline ends a line: the
// kernel escapes it in a name, and no other byte.
func Lines(text string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for line := range strings.Lines(text) {
			if !yield(strings.TrimSuffix(line, "\n")) {
				return
			}
		}
	}
}

// Split returns the fields of a line, still escaped: what blanks and tabs part.
func Split(line string) []string {
	return strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
}

// Unescape undoes mangle_path of fs/seq_file.c and string_escape_mem of
// lib/string_helpers.c, once: a backslash and three octal digits stand for the byte of
// that number. Any other backslash stays.
func Unescape(field string) string {
	if !strings.Contains(field, `\`) {
		return field
	}
	b := make([]byte, 0, len(field))
	for i := 0; i < len(field); i++ {
		if c, ok := octal(field[i:]); ok {
			b = append(b, c)
			i += 3
			continue
		}
		b = append(b, field[i])
	}
	return string(b)
}

// octal reads an escape at the beginning of s.
func octal(s string) (byte, bool) {
	if len(s) < 4 || s[0] != '\\' || s[1] < '0' || s[1] > '3' {
		return 0, false
	}
	c := s[1] - '0'
	for _, d := range []byte(s[2:4]) {
		if d < '0' || d > '7' {
			return 0, false
		}
		c = c<<3 | (d - '0')
	}
	return c, true
}

// EscapesOnly reports whether every backslash of the field begins an escape.
func EscapesOnly(field string) bool {
	for i := 0; i < len(field); i++ {
		if field[i] != '\\' {
			continue
		}
		if _, ok := octal(field[i:]); !ok {
			return false
		}
		i += 3
	}
	return true
}

// Mount is a line of mountinfo, escapes undone.
type Mount struct {
	ID           uint64
	Major, Minor uint32
	Root         string // directory of the file system that is mounted
	Point        string // where it is mounted
	Options      []string
	Type         string // such as "ext4" or "fuse.sshfs"
	Source       string // what it was mounted from; anything, an empty name too
	SuperOptions []string
}

// ParseMounts reads the text of /proc/PID/mountinfo (show_mountinfo in
// fs/proc_namespace.c):
//
//	36 35 98:0 /root /point rw,noatime shared:1 master:2 - ext4 /dev/source rw,errors=continue
//
// One blank parts two fields, so that a source without a name is an empty field. There
// is any number of tags before the dash.
func ParseMounts(text string) ([]Mount, error) {
	var mounts []Mount
	for line := range Lines(text) {
		m, err := parseMount(strings.Split(line, " "))
		if err != nil {
			return nil, fmt.Errorf("mountinfo: %w: %q", err, line)
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

func parseMount(f []string) (m Mount, err error) {
	dash := 6
	for dash < len(f) && f[dash] != "-" {
		dash++ // a tag never is a dash
	}
	if len(f) < dash+4 {
		return m, fmt.Errorf("%d fields, and the dash is number %d", len(f), dash+1)
	}
	if m.ID, err = strconv.ParseUint(f[0], 10, 63); err != nil {
		return m, err
	}
	major, minor, _ := strings.Cut(f[2], ":")
	for _, n := range []struct {
		to   *uint32
		text string
	}{{&m.Major, major}, {&m.Minor, minor}} {
		v, err := strconv.ParseUint(n.text, 10, 32)
		if err != nil {
			return m, err
		}
		*n.to = uint32(v)
	}
	m.Root, m.Point, m.Options = Unescape(f[3]), Unescape(f[4]), strings.Split(f[5], ",")
	m.Type, m.Source = Unescape(f[dash+1]), Unescape(f[dash+2])
	// A file system may show an option with a blank in it.
	m.SuperOptions = strings.Split(strings.Join(f[dash+3:], " "), ",")
	return m, nil
}
