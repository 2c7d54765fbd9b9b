package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"
)

// column is one column of `list` and `status`, as in losetup.
type column[Row any] struct {
	name, help string
	value      func(row Row, bytes bool) string
}

// pickColumns resolves the argument of --output: names in any case, separated by
// commas; a leading + adds to the defaults.
func pickColumns[Row any](all []column[Row], defaults, want string) ([]column[Row], error) {
	names := defaults
	if add, ok := strings.CutPrefix(want, "+"); ok {
		names += "," + add
	} else if want != "" {
		names = want
	}
	var picked []column[Row]
	for _, name := range strings.Split(names, ",") {
		found := false
		for _, c := range all {
			if strings.EqualFold(c.name, strings.TrimSpace(name)) {
				picked, found = append(picked, c), true
			}
		}
		if !found {
			return nil, usageError("unknown column %q; known are %s", name, columnNames(all))
		}
	}
	return picked, nil
}

func columnNames[Row any](all []column[Row]) string {
	var names []string
	for _, c := range all {
		names = append(names, c.name)
	}
	return strings.Join(names, ",")
}

func columnHelp[Row any](all []column[Row]) string {
	var b strings.Builder
	for _, c := range all {
		fmt.Fprintf(&b, "  %-8s %s\n", c.name, c.help)
	}
	return b.String()
}

// printProperties prints one row, a line for each property that it has.
func printProperties[Row any](w io.Writer, columns []column[Row], row Row, bytes bool) {
	for _, c := range columns {
		if v := c.value(row, bytes); v != "" {
			fmt.Fprintf(w, "%-8s %s\n", c.name, printable(v))
		}
	}
}

// printColumns prints rows under their headings. With raw the fields are separated
// by a space, spaces inside them are written \x20 and empty fields are "-".
func printColumns[Row any](w io.Writer, columns []column[Row], rows []Row, headings, raw, bytes bool) error {
	out, flush := w, func() error { return nil }
	sep := " "
	if !raw {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.StripEscape)
		out, flush, sep = t, t.Flush, "\t"
	}
	if headings {
		fmt.Fprintln(out, strings.ReplaceAll(columnNames(columns), ",", sep))
	}
	for _, row := range rows {
		fields := make([]string, len(columns))
		for i, c := range columns {
			fields[i] = printable(c.value(row, bytes))
			if raw {
				fields[i] = strings.ReplaceAll(fields[i], " ", `\x20`)
			}
			if fields[i] == "" {
				fields[i] = "-"
			}
		}
		fmt.Fprintln(out, strings.Join(fields, sep))
	}
	return flush()
}

// printable escapes control characters, so that a file name can neither forge a row
// nor command the terminal, and bytes that are not UTF-8, so that they can be seen.
func printable(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		first := s[0]
		s = s[size:]
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, first)
		case r < 0x80 && unicode.IsControl(r):
			fmt.Fprintf(&b, `\x%02x`, r)
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r), r == '\u2028', r == '\u2029':
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func printJSON(env *cliEnv, v any) error {
	enc := json.NewEncoder(env.stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
