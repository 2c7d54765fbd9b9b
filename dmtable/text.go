package dmtable

import (
	"fmt"
	"strconv"
	"strings"
)

// AppendText appends the table as `dmsetup table` prints it for one device: a
// line "start length target args" for each row, numbers in decimal sectors. A
// row without arguments ends in a space, as dmsetup's does. It returns a
// *RowError for a row whose words do not fit on a line.
func (t Table) AppendText(b []byte) ([]byte, error) {
	for i := range t {
		if reason := t[i].checkWords(); reason != "" {
			return b, &RowError{Row: i, Start: t[i].Start, Reason: reason}
		}
		b = append(t[i].append(b), '\n')
	}
	return b, nil
}

// String returns the table as AppendText does; words that do not fit on a line
// are printed as they are, so use AppendText for what is parsed again.
func (t Table) String() string {
	n := 0
	for i := range t {
		n += 44 + len(t[i].Target) + len(t[i].Args) // two numbers of 20 digits, four separators
	}
	b := make([]byte, 0, n)
	for i := range t {
		b = append(t[i].append(b), '\n')
	}
	return string(b)
}

// String returns the row as it stands on a line of dmsetup's output.
func (r Row) String() string { return string(r.append(nil)) }

func (r *Row) append(b []byte) []byte {
	b = strconv.AppendUint(b, uint64(r.Start), 10)
	b = append(b, ' ')
	b = strconv.AppendUint(b, uint64(r.Length), 10)
	b = append(b, ' ')
	b = append(b, r.Target...)
	b = append(b, ' ')
	return append(b, r.Args...)
}

// LineError says which line of a table's text cannot be read. Match it with
// errors.As.
type LineError struct {
	Line   int    // from 1
	Reason string // what is wrong with it
}

func (e *LineError) Error() string { return fmt.Sprintf("table line %d: %s", e.Line, e.Reason) }

// ParseText reads the text form of one device's table, as dmsetup reads it:
// blank lines, lines that begin with '#' and what follows a '#' in the arguments
// are left out, blanks around words do not matter. It returns a *LineError for
// anything else. The table may still be refused by Validate.
func ParseText(text string) (Table, error) {
	t := make(Table, 0, strings.Count(text, "\n")+1)
	for number := 1; text != ""; number++ {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		line = trim(line)
		if line == "" || line[0] == '#' {
			continue
		}
		row, reason := parseRow(line)
		if reason != "" {
			return nil, &LineError{Line: number, Reason: reason}
		}
		t = append(t, row)
	}
	return t, nil
}

// parseRow reads "start length target args" and returns what is wrong, or "".
func parseRow(line string) (Row, string) {
	start, rest := word(line)
	length, rest := word(rest)
	target, args := word(rest)
	if target == "" {
		return Row{}, "there is no \"start length target\""
	}
	args, _, _ = strings.Cut(args, "#")
	row := Row{Target: target, Args: trim(args)}
	var reason string
	if row.Start, reason = parseSectors(start); reason != "" {
		return Row{}, reason
	}
	if row.Length, reason = parseSectors(length); reason != "" {
		return Row{}, reason
	}
	if reason := row.checkWords(); reason != "" {
		return Row{}, reason
	}
	return row, ""
}

func parseSectors(s string) (Sectors, string) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Sprintf("%q is not a number of sectors", s)
	}
	return Sectors(n), ""
}

const blanks = " \t\v\f\r\n" // what isspace(3) takes for white space

func trim(s string) string { return strings.Trim(s, blanks) }

// word splits off the first word and trims the rest on its left.
func word(s string) (first, rest string) {
	i := strings.IndexAny(s, blanks)
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimLeft(s[i:], blanks)
}
