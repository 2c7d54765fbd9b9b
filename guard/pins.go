package guard

// PinKind is one thing that keeps an image's blocks in place.
type PinKind string

// The kinds of pins.
const (
	PinImmutable PinKind = "immutable" // FS_IMMUTABLE_FL
	PinNoDefrag  PinKind = "nodefrag"  // FS_XFLAG_NODEFRAG, xfs only; xfs_fsr honours it
	PinF2FS      PinKind = "f2fs-pin"  // F2FS_IOC_SET_PIN_FILE
	PinSwap      PinKind = "swap"      // the kernel holds the file as an active swap file
	PinBPF       PinKind = "bpf"       // the gate in the kernel refuses opens, and tables of the devices below
)

// Gate is what refuses opens of an image by others.
type Gate string

// The gates, strongest first.
const (
	GateBPF      Gate = "bpf"      // programs in the kernel, whether a guard runs or not
	GateFanotify Gate = "fanotify" // the guard answers the kernel's questions
	GateNone     Gate = "none"
)

// Grade says what still can move the blocks of an image.
type Grade string

// The grades, strongest first.
const (
	GradeKernel  Grade = "kernel"  // the kernel refuses every known way until the pin is lifted on purpose
	GradeGuarded Grade = "guarded" // a hole is left that only a running guard closes
	GradeUnsafe  Grade = "unsafe"  // anything weaker
)

// Weaker reports whether g is worth less than h. A word that is not a grade is worth as
// little as GradeUnsafe.
func (g Grade) Weaker(h Grade) bool {
	worth := map[Grade]int{GradeKernel: 2, GradeGuarded: 1}
	return worth[g] < worth[h]
}

// PinNames returns the words for pins, an empty list when there are none.
func PinNames(kinds []PinKind) []string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = string(k)
	}
	return names
}
