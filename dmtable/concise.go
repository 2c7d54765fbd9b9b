package dmtable

import (
	"fmt"
	"strconv"
	"strings"
)

// ConciseDevice is one device of dmsetup's concise format, which dmsetup create
// --concise reads from a string and the kernel from dm-mod.create=.
type ConciseDevice struct {
	Name     string // mangled, as CheckName wants it
	UUID     string // may be empty
	Minor    uint32 // 0 to 1048575; only with HasMinor
	HasMinor bool   // false leaves the minor number to the kernel
	ReadOnly bool
	Table    Table // at least one row
}

// FormatConcise returns the devices as name,uuid,minor,ro|rw,row[,row...] with a
// semicolon between devices and a backslash before each comma, semicolon and
// backslash of a word. The kernel's own reader of dm-mod.create= knows no
// backslashes, so names without any are best for booting. It returns a
// *NameError or a *RowError for what cannot be written, and an error for a device
// without rows.
func FormatConcise(devices ...ConciseDevice) (string, error) {
	var b []byte
	for i := range devices {
		if i > 0 {
			b = append(b, ';')
		}
		var err error
		if b, err = devices[i].append(b); err != nil {
			return "", err
		}
	}
	return string(b), nil
}

func (d *ConciseDevice) append(b []byte) ([]byte, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	b = append(appendQuoted(b, d.Name), ',')
	b = append(appendQuoted(b, d.UUID), ',')
	if d.HasMinor {
		b = strconv.AppendUint(b, uint64(d.Minor), 10)
	}
	b = append(b, ',', 'r', 'w')
	if d.ReadOnly {
		b[len(b)-1] = 'o'
	}
	for i := range d.Table {
		row := &d.Table[i]
		reason := row.checkWords()
		if reason == "" && strings.Contains(row.Args, "#") {
			reason = "has a '#', where readers of the format stop"
		}
		if reason != "" {
			return nil, &RowError{Row: i, Start: row.Start, Reason: reason}
		}
		b = append(b, ',')
		b = appendQuoted(b, row.String())
	}
	return b, nil
}

func (d *ConciseDevice) check() error {
	if err := CheckName(d.Name); err != nil {
		return err
	}
	if err := CheckUUID(d.UUID); err != nil {
		return err
	}
	if d.Minor > maxMinor || d.Minor != 0 && !d.HasMinor {
		return fmt.Errorf("device %s: impossible minor number %d", d.Name, d.Minor)
	}
	if len(d.Table) == 0 {
		return fmt.Errorf("device %s: table has no rows", d.Name)
	}
	return nil
}

func appendQuoted(b []byte, s string) []byte {
	for i := range len(s) {
		if strings.IndexByte(`,;\`, s[i]) >= 0 {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return b
}

// ParseConcise reads what FormatConcise and dmsetup table --concise write: one or
// more devices, a semicolon after the last one allowed, blanks after separators
// skipped, flags "ro", "rw" or empty for rw. Names and uuids must be mangled. It
// returns an error that names the device for anything else.
func ParseConcise(s string) ([]ConciseDevice, error) {
	var devices []ConciseDevice
	for rest := strings.TrimLeft(s, blanks); rest != ""; rest = strings.TrimLeft(rest, blanks) {
		fields, tail, err := cutConcise(rest)
		if err != nil {
			return nil, fmt.Errorf("concise device %d: %w", len(devices)+1, err)
		}
		device, err := parseConciseDevice(fields)
		if err != nil {
			return nil, fmt.Errorf("concise device %d: %w", len(devices)+1, err)
		}
		devices = append(devices, device)
		rest = tail
	}
	if len(devices) == 0 {
		return nil, fmt.Errorf("there is no concise device")
	}
	return devices, nil
}

// cutConcise splits one device into its comma-separated fields, unquoted, and
// returns what follows its semicolon.
func cutConcise(s string) (fields []string, rest string, err error) {
	var field []byte
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
			if i == len(s) {
				return nil, "", fmt.Errorf("there is nothing after the last backslash")
			}
			field = append(field, s[i])
		case ',':
			fields = append(fields, string(field))
			field = field[:0]
			for i+1 < len(s) && strings.IndexByte(blanks, s[i+1]) >= 0 {
				i++
			}
		case ';':
			return append(fields, string(field)), s[i+1:], nil
		default:
			field = append(field, s[i])
		}
	}
	return append(fields, string(field)), "", nil
}

func parseConciseDevice(fields []string) (ConciseDevice, error) {
	if len(fields) < 5 {
		return ConciseDevice{}, fmt.Errorf("has %d of the five fields name,uuid,minor,flags,table", len(fields))
	}
	d := ConciseDevice{Name: fields[0], UUID: fields[1]}
	if fields[2] != "" {
		minor, err := strconv.ParseUint(fields[2], 10, 32)
		if err != nil {
			return ConciseDevice{}, fmt.Errorf("%q is not a minor number", fields[2])
		}
		d.Minor, d.HasMinor = uint32(minor), true
	}
	switch fields[3] {
	case "ro":
		d.ReadOnly = true
	case "rw", "":
	default:
		return ConciseDevice{}, fmt.Errorf("flags %q are neither ro nor rw", fields[3])
	}
	for i, text := range fields[4:] {
		row, reason := parseRow(trim(text))
		if reason != "" {
			return ConciseDevice{}, &LineError{Line: i + 1, Reason: reason}
		}
		d.Table = append(d.Table, row)
	}
	return d, d.check()
}
