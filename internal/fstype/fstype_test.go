package fstype

import (
	"testing"

	"dmloop/guard"
)

// The table speaks of each file system once, and what it leaves out is the harmless value.
func TestTable(t *testing.T) {
	names := map[string]bool{}
	for _, fs := range All() {
		switch {
		case names[fs.Name], fs.Magic == 0, len(fs.Superblock.Magic) == 0:
			t.Errorf("%+v", fs)
		case fs.PinNeeded && fs.Pin == "", fs.SwapPins && fs.Pin == "":
			t.Errorf("%s needs a pin that it has not", fs.Name)
		case fs.Immutable != guard.GradeKernel && fs.Immutable != guard.GradeGuarded && fs.Immutable != guard.GradeUnsafe:
			t.Errorf("%s: no grade for the immutable flag", fs.Name)
		}
		names[fs.Name] = true
		if Of(fs.Name).Name != fs.Name {
			t.Errorf("%s is not found", fs.Name)
		}
	}
	for _, name := range []string{"", "tmpfs", "ext2"} {
		if Of(name).Known() {
			t.Errorf("%q is known", name)
		}
	}
	if got := Names(); got != "ext4, xfs, f2fs and btrfs" {
		t.Errorf("%q", got)
	}
}
