package hostfiles

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"dmloop/internal/tab"
)

// Race is a file system for which dmlooptab brings up a shim, and which fstab does not mount from the
// shim: whichever comes first at boot keeps the other from its turn.
type Race struct {
	Shim  tab.Entry
	Mount Mount
}

func (r Race) String() string {
	return fmt.Sprintf("line %d: fstab mounts %s from %s, and not from the shim of the same file system: whichever comes first at boot is in the way of the other, and its images cannot be mapped; in fstab write %s instead of %s",
		r.Shim.Line, r.Mount.Point, r.Mount.Source, r.Shim.Device(), r.Mount.Source)
}

// Races lists the mounts that bypass a shim which comes up by itself. same is asked where the
// words alone do not tell whether two sources are one device, such as a label and a UUID.
func Races(table tab.Table, mounts []Mount, same func(a, b string) bool) []Race {
	var races []Race
	for _, e := range table {
		if e.Kind != tab.Shim || e.NoAuto {
			continue
		}
		for _, m := range mounts {
			source := plainSource(m.Source)
			if slices.ContainsFunc(table, func(e tab.Entry) bool { return e.Device() == source }) {
				continue // the shim itself, or what another line brings up
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
	for tag, dir := range map[string]string{"UUID": "/dev/disk/by-uuid/", "PARTUUID": "/dev/disk/by-partuuid/"} {
		if value, found := strings.CutPrefix(source, dir); found {
			source = tag + "=" + value
		}
	}
	tag, value := tagOf(source)
	switch tag {
	case "":
		return path.Clean(value)
	case "UUID", "PARTUUID":
		value = strings.ToLower(value)
	}
	return tag + "=" + value
}

// tagOf splits a source into its tag, empty for a path, and the value without the quotes that
// fstab may have around it.
func tagOf(source string) (tag, value string) {
	tag, value, found := strings.Cut(source, "=")
	if !found || strings.HasPrefix(source, "/") {
		return "", source
	}
	return tag, strings.Trim(value, `"`)
}

// Link returns the path of udev's link to what a tag names, and of a path itself.
func Link(source string) string {
	tag, value := tagOf(source)
	switch tag {
	case "":
		return value
	case "UUID":
		value = linkForm(value)
	case "PARTUUID":
		value = strings.ToLower(value)
	default:
		value = linkName(value)
	}
	return "/dev/disk/by-" + strings.ToLower(tag) + "/" + value
}

// linkName is how udev writes a label in the name of a link (encode_devnode_name in systemd's
// src/shared/device-nodes.c).
func linkName(label string) string {
	var b strings.Builder
	for i := 0; i < len(label); i++ {
		switch c := label[i]; {
		case c >= utf8.RuneSelf, c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("#+-.:=@_", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}

// isDevice reports whether fstab's word can mean a block device at all.
func isDevice(source string) bool {
	tag, _ := tagOf(source)
	return strings.HasPrefix(source, "/dev/") || tag == "UUID" || tag == "LABEL" || tag == "PARTUUID" || tag == "PARTLABEL"
}
