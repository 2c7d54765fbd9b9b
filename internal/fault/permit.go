package fault

import (
	"os"
	"strconv"
	"strings"

	"dmloop/extents"
	"dmloop/internal/advice"
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
	CapRawIO     = Capability{17, "CAP_SYS_RAWIO"}
	CapAdmin     = Capability{21, "CAP_SYS_ADMIN"}
	CapLease     = Capability{28, "CAP_LEASE"}
)

// caller is what the kernel permits this process.
type caller struct {
	euid      int
	effective uint64 // capabilities
	nested    bool   // in a user namespace other than the first
}

// Permission says what to do about something that takes a capability and was refused.
// "Use sudo" helps nobody who is root already.
func Permission(needed Capability) extents.Remedy { return thisCaller().remedy(needed) }

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

func (c caller) remedy(needed Capability) extents.Remedy {
	switch {
	case c.nested:
		return advice.LeaveNamespace
	case c.effective>>needed.bit&1 == 0 && c.euid != 0:
		return advice.Sudo
	case c.effective>>needed.bit&1 == 0:
		return advice.AddCapability.Of(needed.name)
	}
	return advice.SeeSecurityModule.Of(needed.name)
}
