package vm

import (
	"fmt"
	"regexp"
	"strings"
)

// A fault in a kernel log: the kernel's own words for "this must not happen".
var faultPattern = regexp.MustCompile(
	`\bBUG: |\bkernel BUG at |\bWARNING: |\bOops\b|general protection|\bhung task|blocked for more than \d+ seconds|Kernel panic|possible recursive locking`)

// harmless are lines that match faultPattern and say nothing about our code.
var harmless = regexp.MustCompile(
	// An emulated processor that a busy host does not run: its clock jumps, and
	// it seems stuck. One that is stuck indeed ends in the runner's time-out.
	`clocksource: |timekeeping watchdog|soft lockup`)

// Faults returns the lines of a kernel log that report a fault.
func Faults(log string) []string {
	var found []string
	for line := range strings.Lines(log) {
		if faultPattern.MatchString(line) && !harmless.MatchString(line) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// tail returns the last n lines of log.
func tail(log string, n int) string {
	lines := strings.Split(strings.TrimRight(log, "\n"), "\n")
	if cut := len(lines) - n; cut > 0 {
		return fmt.Sprintf("(%d lines left out)\n%s", cut, strings.Join(lines[cut:], "\n"))
	}
	return strings.Join(lines, "\n")
}
