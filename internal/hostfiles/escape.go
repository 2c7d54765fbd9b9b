package hostfiles

import (
	"strings"

	"github.com/coreos/go-systemd/v22/unit"
)

// instance returns the instance part of the unit of a device of this name: the part
// after "dev-mapper-" of its device unit's name.
func instance(name string) string {
	return strings.TrimPrefix(unit.UnitNamePathEscape("/dev/mapper/"+name), "dev-mapper-")
}

// deviceUnit returns the name of the device unit of a node.
func deviceUnit(path string) string { return unit.UnitNamePathEscape(path) + ".device" }

// mountUnit returns the name of the mount unit of a mount point.
func mountUnit(path string) string { return unit.UnitNamePathEscape(path) + ".mount" }

// swapUnit returns the name of the unit that systemd makes for an active swap file. A
// sealed image is one; what releases it stops before systemd tries to.
func swapUnit(path string) string { return unit.UnitNamePathEscape(path) + ".swap" }

// maxUnitName is the longest name that systemd takes for a unit.
const maxUnitName = 255

// quote writes a value for a unit setting that takes words and expands specifiers.
func quote(value string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`).Replace(value) + `"`
}
