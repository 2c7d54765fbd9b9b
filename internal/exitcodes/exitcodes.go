// Package exitcodes names the program's exit codes, for both sides of a process boundary.
// They are an interface: docs/exit-codes.md lists them, and they never change.
package exitcodes

// The codes besides 0, which says that what was asked for is done.
const (
	Failure      = 1 // something went wrong
	Usage        = 2 // the request itself is wrong
	NotMappable  = 3 // the image breaks a rule
	StaleMapping = 4 // the mapping is stale or torn down
	Busy         = 5 // in use, or already there
	NotFound     = 6 // no such image or mapping
	NotPermitted = 7 // root or a capability is needed
	KernelLacks  = 8 // the kernel lacks something
)
