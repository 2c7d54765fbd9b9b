package tab

import (
	"fmt"
	"strings"

	"dmloop/extents"
	"dmloop/guard"
)

// Kind says what a line brings up.
type Kind string

// The kinds of lines.
const (
	Image Kind = "image" // a file that is mapped
	Shim  Kind = "shim"  // an identity device under a file system
)

// Entry is one line of the table.
type Entry struct {
	Line   int    // counted from 1
	Name   string // of the device, mangled
	Label  string // the name as it was written, for people
	Kind   Kind
	Source string // the image's absolute path; of a shim UUID=, PARTUUID= or a path below /dev
	UUID   string // 32 hex digits for the device's uuid; empty for a random one

	ReadOnly   bool
	NoAuto     bool // comes up only when asked for or needed
	NoFail     bool // nothing else fails with it
	Network    bool // the source needs the network (_netdev)
	Initrd     bool // comes up in the initramfs (x-initrd.attach)
	PartScan   bool
	NoGuard    bool
	Unsafe     bool
	Pin        string       // as map --pin; empty for the default
	Gate       string       // as map --gate; empty for the default
	OnChange   guard.Policy // as map --on-change; empty for the default
	UdevRules  string       // as map --udev-rules; empty for the default
	Offset     extents.Bytes
	SizeLimit  extents.Bytes
	MaxExtents int // 0 for the default
	Units      UnitOptions
}

// UnitOptions are the x-systemd words of a line, which concern its unit only.
type UnitOptions struct {
	DeviceTimeout string // a time span as systemd.time(7) has it; empty for none given
	Requires      []string
	After         []string
	Before        []string
	WantedBy      []string
	RequiredBy    []string
	MountsFor     []string // x-systemd.requires-mounts-for
}

// Device returns the path of the line's device.
func (e Entry) Device() string { return "/dev/mapper/" + e.Name }

// Tag splits the source of a shim line in its tag, "UUID" or "PARTUUID", and the
// tag's value. A device path has no tag.
func (e Entry) Tag() (tag, value string) {
	if tag, value, found := strings.Cut(e.Source, "="); found && !strings.HasPrefix(e.Source, "/") {
		return tag, value
	}
	return "", e.Source
}

// LineError says what is wrong with one line.
type LineError struct {
	Line   int
	Reason string
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Reason) }

// Table is a whole file, in order.
type Table []Entry

// Find returns the entry of this name, given as it was written or mangled.
func (t Table) Find(name string) (Entry, bool) {
	for _, e := range t {
		if e.Name == name || e.Label == name {
			return e, true
		}
	}
	return Entry{}, false
}
