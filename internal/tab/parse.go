package tab

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"dmloop/dmtable"
	"dmloop/internal/kernlist"
)

// Most lines and bytes that a table may have: far more than any machine can map,
// and little enough that no text keeps the boot busy.
const (
	maxLines = 10_000
	maxBytes = 1 << 20
)

// Parse reads a table. The error joins a *LineError for each wrong line; the entries
// are those of the lines that are right, so that one typing error does not keep the
// other devices from coming up.
func Parse(text string) (Table, error) {
	if len(text) > maxBytes {
		return nil, fmt.Errorf("the table has %d bytes, more than the %d that are read", len(text), maxBytes)
	}
	var table Table
	var errs []error
	lines := map[string]int{} // name -> line
	number := 0
	for line := range strings.Lines(text) {
		number++
		if number > maxLines {
			errs = append(errs, &LineError{number, fmt.Sprintf("the table has more than %d lines", maxLines)})
			break
		}
		fields := kernlist.Split(strings.TrimRight(line, "\r\n"))
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		e, err := parseLine(fields)
		if err == nil && lines[e.Name] > 0 {
			err = fmt.Errorf("the name %s is taken by line %d", e.Label, lines[e.Name])
		}
		if err != nil {
			errs = append(errs, &LineError{number, err.Error()})
			continue
		}
		e.Line = number
		lines[e.Name] = number
		table = append(table, e)
	}
	return table, errors.Join(errs...)
}

// parseLine reads the fields of one line.
func parseLine(fields []string) (Entry, error) {
	if len(fields) < 2 || len(fields) > 4 {
		return Entry{}, fmt.Errorf("has %d fields instead of NAME IMAGE UUID|- OPTIONS", len(fields))
	}
	for i, f := range fields {
		plain, err := decode(f)
		if err != nil {
			return Entry{}, err
		}
		fields[i] = plain
	}
	e := Entry{Label: fields[0], Kind: Image, Source: fields[1]}
	var err error
	if e.Name, err = dmtable.Mangle(e.Label); err != nil {
		return Entry{}, err
	}
	if len(fields) > 2 && !none(fields[2]) {
		if e.UUID, err = parseUUID(fields[2]); err != nil {
			return Entry{}, err
		}
	}
	if len(fields) > 3 && !none(fields[3]) {
		if err := e.parseOptions(fields[3]); err != nil {
			return Entry{}, err
		}
	}
	return e, e.check()
}

// none reports whether a field says that there is nothing, in the words of crypttab.
func none(field string) bool { return field == "-" || field == "none" }

// decode turns \NNN into the byte, and refuses what no path or name can be, and the
// bytes that end a line: to systemd a carriage return does, in quotes too, and what
// follows it would be another setting of the unit.
func decode(field string) (string, error) {
	if !kernlist.EscapesOnly(field) {
		return "", fmt.Errorf("a backslash in %q is not followed by three octal digits (write a backslash as \\134)", field)
	}
	plain := kernlist.Unescape(field)
	if strings.ContainsAny(plain, "\x00\n\r") || !utf8.ValidString(plain) {
		return "", fmt.Errorf("%q has a byte that no field can have", field)
	}
	return plain, nil
}

// Encode is decode's reverse.
func Encode(plain string) string {
	var b strings.Builder
	for i, r := range plain {
		if unicode.IsSpace(r) || unicode.IsControl(r) || r == '\\' || r == '#' && i == 0 {
			for _, c := range []byte(string(r)) {
				fmt.Fprintf(&b, `\%03o`, c)
			}
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// parseUUID returns the 32 hex digits of a UUID.
func parseUUID(text string) (string, error) {
	digits := strings.ToLower(strings.ReplaceAll(text, "-", ""))
	if len(digits) != 32 || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%q is neither - nor a UUID of 32 hexadecimal digits", text)
	}
	return digits, nil
}

// check refuses combinations that cannot be brought up.
func (e Entry) check() error {
	if e.Kind == Shim {
		return e.checkShim()
	}
	switch {
	case !strings.HasPrefix(e.Source, "/"):
		return fmt.Errorf("the image %q is not an absolute path (a line for a device needs the option shim)", e.Source)
	case path.Clean(e.Source) != e.Source:
		return fmt.Errorf("the image's path has to be written as %q", path.Clean(e.Source))
	case strings.HasPrefix(e.Source, "/dev/"):
		return fmt.Errorf("the image %q is a device: add the option shim", e.Source)
	}
	return nil
}

func (e Entry) checkShim() error {
	tag, value := e.Tag()
	switch tag {
	case "":
		if !strings.HasPrefix(value, "/dev/") || path.Clean(value) != value {
			return fmt.Errorf("a shim is made of UUID=, PARTUUID= or a path below /dev, not of %q", e.Source)
		}
	case "UUID", "PARTUUID":
		if value == "" || strings.Trim(value, "0123456789abcdefABCDEF-") != "" || strings.Trim(value, "-") == "" {
			return fmt.Errorf("%q is not a valid %s", value, tag)
		}
	default:
		return fmt.Errorf("a shim is made of UUID=, PARTUUID= or a path below /dev, not of %s=", tag)
	}
	if e.ReadOnly || e.PartScan || e.NoGuard || e.Unsafe || e.Pin != "" || e.OnChange != "" || e.UdevRules != "" || e.Offset != 0 || e.SizeLimit != 0 || e.MaxExtents != 0 {
		return fmt.Errorf("a shim takes no options of images")
	}
	return nil
}
