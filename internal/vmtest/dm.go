package vmtest

import (
	"fmt"
	"os"
	"testing"
)

// DmsetupCreate makes a device-mapper device from a table in dmsetup's text
// form, one row a line, and returns its path. It is removed when the test ends.
func DmsetupCreate(t testing.TB, name, table string) string {
	t.Helper()
	RequireGuest(t)
	must(t, table, "dmsetup", "create", name)
	t.Cleanup(func() { DmsetupRemove(t, name) })
	path := "/dev/mapper/" + name
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("dmsetup create made no node: %v", err)
	}
	return path
}

// DmsetupRemove removes a device if it is still there.
func DmsetupRemove(t testing.TB, name string) {
	t.Helper()
	if Run(t, "dmsetup", "info", "-c", "--noheadings", name).Code != 0 {
		return
	}
	if r := Run(t, "dmsetup", "remove", "--retry", name); r.Code != 0 {
		t.Errorf("dmsetup remove %s: %s", name, r.Stderr)
	}
}

// Shim makes an identity device of dev: the layer between a disk and a file
// system that lets others share the disk.
func Shim(t testing.TB, dev, name string) string {
	t.Helper()
	return DmsetupCreate(t, name, fmt.Sprintf("0 %d linear %s 0\n", Sectors(t, dev), dev))
}

// LinearStack makes a device of two segments, the second half of a and then
// the first half of b, so that no address is its own image.
func LinearStack(t testing.TB, name, a, b string) string {
	t.Helper()
	halfA, halfB := Sectors(t, a)/2, Sectors(t, b)/2
	return DmsetupCreate(t, name, fmt.Sprintf(
		"0 %d linear %s %d\n%d %d linear %s 0\n", halfA, a, halfA, halfA, halfB, b))
}

// Stripes makes a striped device over devs with the given chunk in sectors.
func Stripes(t testing.TB, name string, chunk int64, devs ...string) string {
	t.Helper()
	each := Sectors(t, devs[0])
	for _, dev := range devs[1:] {
		each = min(each, Sectors(t, dev))
	}
	each -= each % chunk
	row := fmt.Sprintf("0 %d striped %d %d", each*int64(len(devs)), len(devs), chunk)
	for _, dev := range devs {
		row += fmt.Sprintf(" %s 0", dev)
	}
	return DmsetupCreate(t, name, row+"\n")
}
