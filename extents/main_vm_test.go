//go:build vmtest

package extents_test

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/vmtest"
)

// readVariable names a file that the test binary, started by itself, reads the
// layout of: a process of its own, so that its memory can be measured.
const readVariable = "DMLOOP_TEST_READ"

func TestMain(m *testing.M) {
	if path := os.Getenv(readVariable); path != "" {
		readAlone(path)
		return
	}
	vmtest.Main(m)
}

func readAlone(path string) {
	f, err := os.Open(path)
	if err == nil {
		var l extents.Layout
		if l, err = extents.Read(f); err == nil {
			fmt.Println(len(l.Extents), peakMemory())
			return
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// peakMemory returns the most memory that this process ever had, in KiB. The figure of
// wait4(2) would count what the parent had before exec.
func peakMemory() int {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(err)
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		panic(err)
	}
	return kib
}

// selfReading returns the command that reads the layout of path in a new process.
func selfReading(path string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), readVariable+"="+path)
	cmd.Stderr = os.Stderr
	return cmd
}
