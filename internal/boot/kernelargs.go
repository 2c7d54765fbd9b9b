package boot

import (
	"strings"

	"dmloop/internal/kernlist"
)

// Arguments are dmloop's words on the kernel command line.
type Arguments struct {
	Off      bool     // dmloop=off: nothing is brought up
	Fallback Fallback // dmloop.fallback=shell or loop; empty when not given
	Look     bool     // dmloop.way=verify: images are compared before they are mapped, whatever their manifest says
}

// ParseArguments reads /proc/cmdline. Unknown values count as not given.
func ParseArguments(cmdline string) Arguments {
	var a Arguments
	for _, word := range kernlist.Split(strings.TrimSuffix(cmdline, "\n")) {
		switch word {
		case "dmloop=off", "dmloop=0":
			a.Off = true
		case "dmloop.fallback=" + string(Shell):
			a.Fallback = Shell
		case "dmloop.fallback=" + string(Loop):
			a.Fallback = Loop
		case "dmloop.way=" + string(Verify):
			a.Look = true
		}
	}
	return a
}
