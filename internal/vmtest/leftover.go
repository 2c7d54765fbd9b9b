package vmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Main is TestMain for a package with guest tests: it runs them and fails the
// binary when they have left anything behind in the kernel.
func Main(m *testing.M) {
	if inGuest() == "" {
		os.Exit(m.Run()) // unit tests of the same package; guest tests fail by themselves
	}
	before := survey()
	code := m.Run()
	if left := leftovers(before, 2*time.Second); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "FAIL: the tests left behind:\n  %s\n", strings.Join(left, "\n  "))
		code = 1
	}
	os.Exit(code)
}

// leftovers returns what is there and was not before. Removal of a device ends
// a moment after the call that asked for it, so it looks again until patience
// is over.
func leftovers(before map[string]bool, patience time.Duration) []string {
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		var left []string
		for thing := range survey() {
			if !before[thing] {
				left = append(left, thing)
			}
		}
		if len(left) == 0 || time.Now().After(end) {
			slices.Sort(left)
			return left
		}
	}
}

// survey names everything that tests could leave: devices, mounts, swap files,
// processes and open descriptors.
func survey() map[string]bool {
	found := map[string]bool{}
	add := func(kind, what string) { found[kind+" "+what] = true }
	for _, f := range glob("/sys/block/dm-*/dm/name") {
		add("device-mapper device", content(f))
	}
	for _, f := range glob("/sys/block/loop*/loop/backing_file") {
		add("loop device", filepath.Base(filepath.Dir(filepath.Dir(f)))+" on "+content(f))
	}
	for mount := range mounts() {
		add("mount", mount)
	}
	for i, line := range strings.Split(content("/proc/swaps"), "\n") {
		if f := strings.Fields(line); i > 0 && len(f) > 0 {
			add("swap", f[0])
		}
	}
	for _, dir := range glob("/proc/[0-9]*") {
		// Kernel threads have no command line; they come and go as they like.
		if line := content(dir + "/cmdline"); line != "" {
			add("process", filepath.Base(dir)+" "+strings.ReplaceAll(line, "\x00", " "))
		}
	}
	for _, fd := range glob("/proc/self/fd/*") {
		// The descriptor of the listing itself is gone by now.
		if target, err := os.Readlink(fd); err == nil && !strings.HasPrefix(target, "anon_inode:") {
			add("descriptor", filepath.Base(fd)+" -> "+target)
		}
	}
	return found
}

// mountsWatched has the tests that mountsEnd looks at already.
var mountsWatched sync.Map

// mountsEnd has a test fail that leaves a mount: Main would find it when all tests of the
// package are over, and would not know whose it is. A subtest's may be its parent's.
func mountsEnd(t testing.TB) {
	if strings.Contains(t.Name(), "/") {
		return
	}
	if _, watched := mountsWatched.LoadOrStore(t.Name(), true); watched {
		return
	}
	before := mounts()
	t.Cleanup(func() {
		mountsWatched.Delete(t.Name())
		for mount := range mounts() {
			if !before[mount] {
				t.Errorf("left mounted: %s", mount)
			}
		}
	})
}

// mounts are all that this process sees, as "SOURCE on POINT".
func mounts() map[string]bool {
	found := map[string]bool{}
	for line := range strings.Lines(content("/proc/self/mounts")) {
		if f := strings.Fields(line); len(f) > 2 {
			found[f[0]+" on "+f[1]] = true
		}
	}
	return found
}

func glob(pattern string) []string {
	found, err := filepath.Glob(pattern)
	if err != nil {
		panic(err) // a malformed pattern in this file
	}
	return found
}

// content returns a file's text, or nothing: what vanishes between being
// listed and being read is not left behind.
func content(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
