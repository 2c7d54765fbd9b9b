package lifecycle

import (
	"os"
	"strconv"
	"strings"
)

// Capability is a part of root's power (capabilities(7)) that something takes.
type Capability struct {
	bit  int
	name string
}

// The capabilities that dmloop needs, by their numbers in linux/capability.h.
var (
	CapFiles     = Capability{1, "CAP_DAC_OVERRIDE"}
	CapImmutable = Capability{9, "CAP_LINUX_IMMUTABLE"}
	CapAdmin     = Capability{21, "CAP_SYS_ADMIN"}
	CapLease     = Capability{28, "CAP_LEASE"}
)

// caller is what the kernel permits this process.
type caller struct {
	euid      int
	effective uint64 // capabilities
	nested    bool   // in a user namespace other than the first
}

// PermissionHint says what to do about something that takes a capability and was refused.
// "Use sudo" helps nobody who is root already.
func PermissionHint(needed Capability) string { return thisCaller().hint(needed) }

func thisCaller() caller {
	c := caller{euid: os.Geteuid(), effective: ^uint64(0)}
	status, _ := os.ReadFile("/proc/self/status") // without /proc nothing is known to lack
	for _, line := range strings.Split(string(status), "\n") {
		if value, found := strings.CutPrefix(line, "CapEff:"); found {
			if bits, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64); err == nil {
				c.effective = bits
			}
		}
	}
	// The first namespace maps every number to itself.
	users, err := os.ReadFile("/proc/self/uid_map")
	c.nested = err == nil && strings.Join(strings.Fields(string(users)), " ") != "0 0 4294967295"
	return c
}

func (c caller) hint(needed Capability) string {
	switch {
	case c.nested:
		return "root inside a user namespace, as in a rootless container, is not root of the machine: run the command outside"
	case c.effective>>needed.bit&1 == 0 && c.euid != 0:
		return "run the command with sudo"
	case c.effective>>needed.bit&1 == 0:
		return "this root lacks the capability " + needed.name + ", as in a container or in a unit with CapabilityBoundingSet=: add it, or run the command outside"
	}
	return "not for lack of " + needed.name + ": what refuses it is a security module (SELinux, AppArmor), a seccomp filter, the device rules of a container, " +
		"or for a file whoever watches opens (an on-access scanner, another guard); see dmesg and the audit log"
}
