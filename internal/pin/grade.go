// Package pin sets, proves and undoes what keeps an image's blocks where they
// are, and says how much that is worth. Its only writes are the inode's flags and
// one extended attribute.
package pin

import (
	"slices"

	"dmloop/guard"
)

// Kind and Grade are package guard's.
type (
	Kind  = guard.PinKind
	Grade = guard.Grade
)

// The kinds and grades, as records and `list` name them.
const (
	Immutable = guard.PinImmutable
	NoDefrag  = guard.PinNoDefrag
	F2FS      = guard.PinF2FS
	Swap      = guard.PinSwap

	Kernel  = guard.GradeKernel
	Guarded = guard.GradeGuarded
	Unsafe  = guard.GradeUnsafe
)

// Evidence is what is known of an image's pins, all of it read from the kernel.
type Evidence struct {
	Filesystem string // "ext4", "xfs", "f2fs", "btrfs"
	Reflink    bool   // the file system can share extents (xfs with reflink=1, btrfs)
	InForce    []Kind
	Proof      bool // a write lease showed, with the pins in force, that nobody else had the file open
}

// GradeOf computes the grade from what is really in force.
//
// An active swap file is refused by the kernel to every mover, older descriptors
// included (IS_SWAPFILE checks, Linux 6.1 to 7.3). f2fs's garbage collector asks
// for the pin alone (f2fs_gc_pinned_control in fs/f2fs/gc.c), which swapon sets and
// which can be lifted while the file is swap. The immutable flag stops every
// open for writing, so it is worth as much where no older descriptor exists and
// no operation needs one: not on xfs with reflink (FICLONE from an immutable file
// shares its extents) and not on f2fs (its garbage collector may drop the pin).
func GradeOf(e Evidence) Grade {
	has := func(k Kind) bool { return slices.Contains(e.InForce, k) }
	switch e.Filesystem {
	case "ext4", "xfs":
		if has(Swap) {
			return Kernel
		}
	case "f2fs":
		if has(Swap) && has(F2FS) {
			return Kernel
		}
	case "btrfs":
		if has(Swap) {
			return Kernel
		}
		return Unsafe // balance and snapshot ignore the immutable flag
	default:
		return Unsafe
	}
	if !has(Immutable) || !e.Proof {
		return Unsafe
	}
	switch {
	case e.Filesystem == "ext4", e.Filesystem == "xfs" && !e.Reflink:
		return Kernel
	case e.Filesystem == "xfs", has(F2FS):
		return Guarded
	}
	return Unsafe
}
