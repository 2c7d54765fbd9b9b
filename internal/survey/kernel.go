package survey

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// kernelVersion returns the first two numbers of the running kernel's release, or
// zeros when it has none. Versions are for advice and for what cannot be asked
// without changing something; what can be asked is asked.
func kernelVersion() (major, minor int) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return 0, 0
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return 0, 0
	}
	return major, minor
}

// pinsWrittenFiles reports whether this kernel's f2fs pins a file that has blocks
// already: Linux 6.1 does, 6.12 does not, and since when is not known, so only what
// was tried is promised.
func pinsWrittenFiles(major, minor int) bool {
	return major > 0 && (major < 6 || major == 6 && minor <= 1)
}

// manyRows is the number of rows from which flushes are worth a warning.
const manyRows = 256

// CostlyFlushes reports whether flushes of a table of so many rows are slow on this kernel.
func CostlyFlushes(rows int) bool { return rows >= manyRows && flushesEveryRow(kernelVersion()) }

// flushesEveryRow reports whether this kernel passes an empty flush on once for each
// row of a table instead of once for each device: until Linux 6.11 ("dm: optimize
// flushes", aaa53168cbcc).
func flushesEveryRow(major, minor int) bool {
	return major > 0 && (major < 6 || major == 6 && minor < 11)
}
