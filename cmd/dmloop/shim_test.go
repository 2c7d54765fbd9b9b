package main

import (
	"strings"
	"testing"

	"dmloop/internal/tab"
)

// The line that shim prints makes the same device at the next boot.
func TestShimAdvice(t *testing.T) {
	const device = `/dev/mapper/a\x20b`
	for line := range strings.Lines(shimAdvice("/dev/none", "a b", device)) {
		if !strings.Contains(line, "shim") {
			continue
		}
		table, err := tab.Parse(line)
		if err != nil || len(table) != 1 || table[0].Device() != device {
			t.Errorf("%q: %+v, %v", line, table, err)
		}
		return
	}
	t.Error("there is no line for dmlooptab")
}
