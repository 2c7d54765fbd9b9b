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
		switch {
		case fs.Bare && (fs.Immutable != guard.GradeUnsafe || fs.Pin != ""):
			t.Errorf("%s has flags and has none", fs.Name)
		case fs.Unproven && !fs.Bare, fs.Units && !fs.Bare:
			t.Errorf("%s: what was never tried elsewhere", fs.Name)
		case OfMagic(fs.Magic).Name != fs.Name, len(fs.Superblocks()) == 0, fs.Superblocks()[0].MagicAt != fs.Superblock.MagicAt:
			t.Errorf("%s is not found by its magic", fs.Name)
		}
		if Of(fs.Name).Name != fs.Name {
			t.Errorf("%s is not found", fs.Name)
		}
	}
	for _, name := range []string{"", "tmpfs", "ext2"} {
		if Of(name).Known() || OfMagic(0x01021994).Known() {
			t.Errorf("%q is known", name)
		}
	}
	if got := Names(); got != "ext4, xfs, f2fs, btrfs, vfat, exfat and ntfs3" {
		t.Errorf("%q", got)
	}
}
