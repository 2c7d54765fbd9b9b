// Package pin sets, proves and undoes what keeps an image's blocks where they
// are, and says how much that is worth. Its only writes are the inode's flags and
// one extended attribute.
package pin

import (
	"slices"

	"dmloop/guard"
	"dmloop/internal/fstype"
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
	BPF       = guard.PinBPF

	Kernel  = guard.GradeKernel
	Guarded = guard.GradeGuarded
	Unsafe  = guard.GradeUnsafe
)

// Evidence is what is known of an image's pins, all of it read from the kernel.
type Evidence struct {
	Filesystem string
	Reflink    bool // the file system can share extents (xfs with reflink=1, btrfs)
	InForce    []Kind
	Proof      bool // a write lease showed, with the pins in force, that nobody else had the file open
}

// GradeOf computes the grade from what is really in force.
//
// An active swap file is refused by the kernel to every mover, older descriptors
// included (IS_SWAPFILE checks, Linux 6.1 to 7.3), except for a collector that asks for the
// file system's own pin alone. The immutable flag stops every open for writing, so it is
// worth as much where no older descriptor exists and no operation needs one. On a file
// system that can share extents a reader can have them shared: there the gate in the
// kernel has to keep readers out, or a guard.
func GradeOf(e Evidence) Grade {
	has := func(k Kind) bool { return slices.Contains(e.InForce, k) }
	fs := fstype.Of(e.Filesystem)
	switch {
	case !fs.Known(), fs.PinNeeded && !has(fs.Pin):
		return Unsafe
	case has(Swap):
		return Kernel
	case !has(Immutable) || !e.Proof:
		return Unsafe
	case fs.Immutable == Kernel && e.Reflink && !has(BPF):
		return Guarded
	}
	return fs.Immutable
}
