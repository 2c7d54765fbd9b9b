package pin

import (
	"slices"
	"testing"
)

// The table is written out by hand from what the kernels were seen to refuse, not
// computed: a change of the code must be a change here.
func TestGradeOf(t *testing.T) {
	i, n, p, s := Immutable, NoDefrag, F2FS, Swap
	for _, c := range []struct {
		fs      string
		reflink bool
		proof   bool
		inForce []Kind
		want    Grade
	}{
		{"ext4", false, true, nil, Unsafe},
		{"ext4", false, true, []Kind{i}, Kernel},
		{"ext4", false, false, []Kind{i}, Unsafe}, // an older descriptor can move blocks (MOVE_EXT)
		{"ext4", false, false, []Kind{s}, Kernel}, // swap binds older descriptors too
		{"ext4", false, true, []Kind{s, i}, Kernel},
		{"ext4", false, true, []Kind{n}, Unsafe},
		{"xfs", false, true, []Kind{n, i}, Kernel},
		{"xfs", false, true, []Kind{i}, Kernel},
		{"xfs", false, false, []Kind{n, i}, Unsafe},
		{"xfs", true, true, []Kind{n, i}, Guarded}, // reflink from it works
		{"xfs", true, true, []Kind{i}, Guarded},
		{"xfs", true, false, []Kind{n, i}, Unsafe},
		{"xfs", true, true, []Kind{n}, Unsafe},
		{"xfs", true, false, []Kind{n, s, i}, Kernel},
		{"xfs", true, true, []Kind{s}, Kernel},
		{"f2fs", false, true, []Kind{p, i}, Guarded}, // its collector may drop the pin
		{"f2fs", false, true, []Kind{i}, Unsafe},
		{"f2fs", false, true, []Kind{p}, Unsafe},
		{"f2fs", false, false, []Kind{p, i}, Unsafe},
		{"f2fs", false, false, []Kind{p, s, i}, Kernel},
		{"f2fs", false, false, []Kind{p, s}, Kernel},
		{"f2fs", false, true, []Kind{s, i}, Unsafe}, // its collector moves what has no pin, swap or not
		{"btrfs", true, true, []Kind{i}, Unsafe},    // balance and snapshot ignore it
		{"btrfs", true, true, []Kind{s, i}, Kernel},
		{"btrfs", true, false, []Kind{s}, Kernel},
		{"vfat", false, false, []Kind{s}, Kernel},
		{"exfat", false, true, nil, Unsafe},
		{"exfat", false, true, []Kind{i}, Unsafe}, // none has the flag
		{"tmpfs", false, true, []Kind{i, s, p, n}, Unsafe},
		{"", false, true, []Kind{s, i}, Unsafe},
		{"ext3", false, true, []Kind{s, i}, Unsafe},
	} {
		got := GradeOf(Evidence{Filesystem: c.fs, Reflink: c.reflink, InForce: c.inForce, Proof: c.proof})
		if got != c.want {
			t.Errorf("%s, reflink %v, proof %v, %v: %s, want %s", c.fs, c.reflink, c.proof, c.inForce, got, c.want)
		}
	}
}

func TestWanted(t *testing.T) {
	for _, c := range []struct {
		fs     string
		sealed bool
		want   []Kind
	}{
		{"ext4", false, []Kind{Immutable}},
		{"ext4", true, []Kind{Swap, Immutable}},
		{"vfat", true, []Kind{Swap}},
		{"ntfs3", false, nil},
		{"xfs", false, []Kind{NoDefrag, Immutable}},
		{"xfs", true, []Kind{NoDefrag, Swap, Immutable}},
		{"f2fs", false, []Kind{F2FS, Immutable}},
		{"f2fs", true, []Kind{Swap, Immutable}},
	} {
		got := Wanted(c.fs, c.sealed)
		if grade := GradeOf(Evidence{Filesystem: c.fs, InForce: Resulting(c.fs, got), Proof: true}); c.sealed && grade != Kernel || grade == Unsafe && len(c.want) > 0 {
			t.Errorf("%s, sealed %v: grade %s", c.fs, c.sealed, grade)
		}
		if !equal(got, c.want) {
			t.Errorf("%s, sealed %v: %v, want %v", c.fs, c.sealed, got, c.want)
		}
		// The kernel refuses swapon and swapoff of an immutable file.
		if slices.Contains(got, Immutable) && got[len(got)-1] != Immutable {
			t.Errorf("%s: immutable is not set last: %v", c.fs, got)
		}
		// A pin that Set sets and order does not know would never be cleared.
		at := 0
		for _, k := range order {
			if at < len(got) && got[at] == k {
				at++
			}
		}
		if at != len(got) {
			t.Errorf("%s: %v are not all cleared, in reverse of %v", c.fs, got, order)
		}
	}
}

func equal(a, b []Kind) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
