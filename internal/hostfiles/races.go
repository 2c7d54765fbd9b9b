package hostfiles

import (
	"fmt"
	"path"
	"strings"

	"dmloop/internal/tab"
)

// Race is a file system that dmlooptab brings up a shim for, and that fstab mounts past the
// shim: whichever comes first at boot keeps the other from its turn.
type Race struct {
	Shim  tab.Entry
	Mount Mount
}

func (r Race) String() string {
	return fmt.Sprintf("line %d: fstab mounts %s from %s, and not from the shim of the same file system: whichever comes first at boot is in the way of the other, and its images cannot be mapped; in fstab write %s instead of %s",
		r.Shim.Line, r.Mount.Point, r.Mount.Source, r.Shim.Device(), r.Mount.Source)
}

// Races lists the mounts that go past a shim which comes up by itself. same is asked where the
// words alone do not tell whether two sources are one device, such as a label and a UUID.
func Races(table tab.Table, mounts []Mount, same func(a, b string) bool) []Race {
	var races []Race
	for _, e := range table {
		if e.Kind != tab.Shim || e.NoAuto {
			continue
		}
		for _, m := range mounts {
			source := plainSource(m.Source)
			if source == e.Device() || strings.HasPrefix(source, "/dev/mapper/") && source != e.Source {
				continue
			}
			if source == plainSource(e.Source) || isDevice(source) && same(source, e.Source) {
				races = append(races, Race{e, m})
			}
		}
	}
	return races
}

// plainSource writes what names a device by its tag in one way.
func plainSource(source string) string {
	tag, value, found := strings.Cut(source, "=")
	switch {
	case strings.HasPrefix(source, "/dev/disk/by-uuid/"):
		tag, value, found = "UUID", path.Base(source), true
	case strings.HasPrefix(source, "/dev/disk/by-partuuid/"):
		tag, value, found = "PARTUUID", path.Base(source), true
	case strings.HasPrefix(source, "/"):
		return path.Clean(source)
	}
	if !found {
		return source
	}
	value = strings.Trim(value, `"`)
	if tag == "UUID" || tag == "PARTUUID" {
		value = strings.ToLower(value)
	}
	return tag + "=" + value
}

// isDevice reports whether fstab's word can mean a block device at all.
func isDevice(source string) bool {
	tag, _, found := strings.Cut(source, "=")
	return strings.HasPrefix(source, "/dev/") || found && (tag == "UUID" || tag == "LABEL" || tag == "PARTUUID" || tag == "PARTLABEL")
}
