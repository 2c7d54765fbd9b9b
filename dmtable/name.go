package dmtable

import (
	"fmt"
	"strings"
)

// Longest name and uuid of a device in bytes (DM_NAME_LEN and DM_UUID_LEN in
// linux/dm-ioctl.h are one more, for the NUL).
const (
	MaxName = 127
	MaxUUID = 128
)

// NameError says why a string cannot be a device's name or uuid. Match it with
// errors.As.
type NameError struct {
	Name   string // the string as given
	Reason string // what is wrong with it, as the end of a sentence
}

func (e *NameError) Error() string { return fmt.Sprintf("name %q %s", e.Name, e.Reason) }

// Mangle returns the name under which libdevmapper and udev know a device that
// people call name: bytes other than 0-9 A-Z a-z # + - . : = @ _ become \xNN
// with lower-case digits, the backslash too, so Unmangle gives name back. A name that
// has \xNN in it counts as mangled already and stays as it is: libdevmapper takes it so,
// and one device with a name that is mangled twice makes every `dmsetup ls` fail.
// It returns a *NameError for "", ".", "..", "control", a name with a slash or a
// NUL, one that is mangled in part or twice, and one whose mangled form is longer than
// MaxName; nothing is cut off.
func Mangle(name string) (string, error) {
	switch {
	case strings.Contains(name, "/"):
		return "", &NameError{Name: name, Reason: "has a slash"}
	case strings.Contains(name, "\x00"):
		return "", &NameError{Name: name, Reason: "has a NUL"}
	}
	if hasEscape(name) {
		back, err := Unmangle(name)
		if err == nil && hasEscape(back) {
			err = &NameError{Name: name, Reason: `is mangled more than once (\xNN stands for one byte)`}
		}
		if err != nil {
			return "", err
		}
		return name, nil
	}
	const digits = "0123456789abcdef"
	b := make([]byte, 0, len(name)+16)
	for i := range len(name) {
		c := name[i]
		if plain(c) {
			b = append(b, c)
			continue
		}
		b = append(b, '\\', 'x', digits[c>>4], digits[c&15])
	}
	if len(b) > MaxName {
		return "", &NameError{Name: name, Reason: fmt.Sprintf("is too long: %d bytes when mangled, %d are allowed", len(b), MaxName)}
	}
	if reason := checkName(string(b)); reason != "" {
		return "", &NameError{Name: name, Reason: reason}
	}
	return string(b), nil
}

// hasEscape reports whether libdevmapper sees a mangled byte in s.
func hasEscape(s string) bool {
	for i := 0; i+3 < len(s); i++ {
		if s[i] == '\\' && s[i+1] == 'x' && strings.Trim(s[i+2:i+4], "0123456789abcdefABCDEF") == "" {
			return true
		}
	}
	return false
}

// Unmangle returns what people call the device of this mangled name: \xNN
// becomes one byte. It returns a *NameError for a name that CheckName refuses.
func Unmangle(mangled string) (string, error) {
	if err := CheckName(mangled); err != nil {
		return "", err
	}
	b := make([]byte, 0, len(mangled))
	for i := 0; i < len(mangled); i++ {
		c := mangled[i]
		if c == '\\' {
			c = nibble(mangled[i+2])<<4 | nibble(mangled[i+3])
			i += 3
		}
		b = append(b, c)
	}
	return string(b), nil
}

// CheckName returns a *NameError unless name can be given to the kernel as it
// is: 1 to MaxName bytes, only plain characters and \xNN as Mangle makes them,
// not ".", ".." or "control".
func CheckName(name string) error {
	if reason := checkName(name); reason != "" {
		return &NameError{Name: name, Reason: reason}
	}
	return nil
}

func checkName(name string) string {
	switch name {
	case "":
		return "is empty"
	case ".", "..", "control":
		return "is reserved"
	}
	return checkMangled(name, MaxName)
}

// CheckUUID returns a *NameError unless uuid can be given to the kernel as it
// is: at most MaxUUID bytes (none means no uuid), only plain characters and \xNN
// as Mangle makes them.
func CheckUUID(uuid string) error {
	if reason := checkMangled(uuid, MaxUUID); reason != "" {
		return &NameError{Name: uuid, Reason: reason}
	}
	return nil
}

func checkMangled(s string, longest int) string {
	if len(s) > longest {
		return fmt.Sprintf("is too long: %d bytes, %d are allowed", len(s), longest)
	}
	for i := 0; i < len(s); i++ {
		switch {
		case plain(s[i]):
		case s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' && isHex(s[i+2]) && isHex(s[i+3]):
			i += 3
		default:
			return fmt.Sprintf("has the character %q, which must be written as \\x%02x", s[i:i+1], s[i])
		}
	}
	return ""
}

// plain is libdevmapper's list of characters that need no mangling.
func plain(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' ||
		strings.IndexByte("#+-.:=@_", c) >= 0
}

func isHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' }

func nibble(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c - 'a' + 10
}
