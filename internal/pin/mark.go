package pin

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Attribute is the extended attribute that says which pins dmloop set on a file.
// It is written before the first of them and removed after the last, so a pin of
// ours is known as ours after a crash or a reboot. Only root can write trusted.*
// attributes (xattr(7)).
const Attribute = "trusted.dmloop.pin"

const markVersion = 1

// Mark is the content of Attribute.
type Mark struct {
	Version int    `json:"version"`
	Name    string `json:"name"` // mapping the pins were set for; empty when set by `dmloop pin`
	Kinds   []Kind `json:"kinds"`
}

// ReadMark returns the mark on f, or ok false when there is none. A mark that
// cannot be understood is an error, since undoing it would be a guess.
func ReadMark(f *os.File) (m Mark, ok bool, err error) {
	buf := make([]byte, 4096)
	n, err := unix.Fgetxattr(int(f.Fd()), Attribute, buf)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP):
		return Mark{}, false, nil
	case err != nil:
		return Mark{}, false, fmt.Errorf("reading the attribute %s: %w", Attribute, err)
	}
	if err := json.Unmarshal(buf[:n], &m); err != nil {
		return Mark{}, false, fmt.Errorf("attribute %s: %w", Attribute, err)
	}
	if m.Version != markVersion {
		return Mark{}, false, fmt.Errorf("attribute %s has version %d, this dmloop knows version %d", Attribute, m.Version, markVersion)
	}
	for _, k := range m.Kinds {
		if !slices.Contains(order, k) {
			return Mark{}, false, fmt.Errorf("attribute %s names the unknown pin %q", Attribute, k)
		}
	}
	return m, true, nil
}

func writeMark(f *os.File, filesystem string, m Mark) error {
	m.Version = markVersion
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := unix.Fsetxattr(int(f.Fd()), Attribute, b, 0); err != nil {
		return fmt.Errorf("writing the attribute %s: %w", Attribute, err)
	}
	// ext4, xfs and btrfs commit metadata in order: a flag set later is never on
	// disk without this attribute. f2fs orders nothing without an fsync.
	if filesystem == "f2fs" {
		return f.Sync()
	}
	return nil
}

// Wanted lists the pins that the file system offers, in the order in which they
// are set. The swap claim comes right before the immutable flag: swapon refuses an
// immutable file, and so does swapoff, which is why it is released after it. f2fs
// pins a swap file by itself, also one that it would not pin for anybody else.
func Wanted(filesystem string, sealed bool) []Kind {
	var kinds []Kind
	switch {
	case filesystem == "xfs":
		kinds = append(kinds, NoDefrag)
	case filesystem == "f2fs" && !sealed:
		kinds = append(kinds, F2FS)
	}
	if sealed {
		kinds = append(kinds, Swap)
	}
	return append(kinds, Immutable)
}

// Resulting lists what is in force when the wanted kinds are set.
func Resulting(filesystem string, wanted []Kind) []Kind {
	if filesystem != "f2fs" || !slices.Contains(wanted, Swap) || slices.Contains(wanted, F2FS) {
		return wanted
	}
	return append([]Kind{F2FS}, wanted...) // f2fs_swap_activate in fs/f2fs/data.c
}

// ClaimMoves reports whether the file system may move a file's blocks when the kernel
// takes it for swap. f2fs does, each time, with a file that does not fill its sections
// (check_swap_activate in fs/f2fs/data.c, seen on 6.12 and 7.3). Such a claim must not
// be taken on the image of a live mapping.
func ClaimMoves(filesystem string) bool { return filesystem == "f2fs" }

// Claim takes or gives back the kernel's swap claim on the file; package swap
// provides it. It must do nothing when there is nothing to do.
type Claim func(on bool) error

// Foreign reports whether somebody else made f immutable. Then neither flags nor
// attributes can be set on it, and what is in force has to do.
func Foreign(f *os.File, inForce []Kind) (bool, error) {
	if !slices.Contains(inForce, Immutable) {
		return false, nil
	}
	m, marked, err := ReadMark(f)
	return !marked || !slices.Contains(m.Kinds, Immutable), err
}

// Set records in the mark and then sets each of kinds that is not in force yet, in
// the order in which they can be set, and returns all kinds that the mark names as ours
// afterwards. A mark with an empty name (`dmloop pin`) keeps it, so that UndoFor leaves
// those pins. Nothing is set on a file that somebody else made immutable. On failure
// Set undoes what the mark names.
func Set(f *os.File, filesystem, name string, kinds []Kind, claim Claim) (ours []Kind, err error) {
	for _, k := range kinds {
		if !slices.Contains(order, k) {
			return nil, fmt.Errorf("there is no pin %q", k)
		}
	}
	inForce, err := InForce(f, filesystem)
	if err != nil {
		return nil, err
	}
	old, marked, err := ReadMark(f)
	if err != nil {
		return nil, err
	}
	if foreign, err := Foreign(f, inForce); err != nil || foreign {
		return nil, err
	}
	if marked && old.Name == "" {
		name = "" // pinned by hand before: stays pinned when the mapping goes
	}
	ours = old.Kinds
	var todo []Kind
	for _, k := range order {
		switch {
		case !slices.Contains(kinds, k), slices.Contains(inForce, k):
			continue
		case k == F2FS && slices.Contains(kinds, Swap): // swapon sets it, also where nobody else can
			continue
		}
		todo = append(todo, k)
		if !slices.Contains(ours, k) {
			ours = append(ours, k)
		}
	}
	if len(todo) == 0 && (!marked || old.Name == name) {
		return ours, nil
	}
	lifted := slices.Contains(inForce, Immutable) && marked && slices.Contains(old.Kinds, Immutable)
	if lifted { // our own leftover: a mark cannot be changed on an immutable file
		if err := put(f, filesystem, Immutable, false); err != nil {
			return nil, fmt.Errorf("lifting the immutable flag of an earlier mapping: %w", err)
		}
		todo = append(todo, Immutable)
	}
	if err := writeMark(f, filesystem, Mark{Name: name, Kinds: ours}); err != nil {
		return nil, err
	}
	for _, k := range todo {
		if k == Swap {
			err = claim(true)
		} else {
			err = put(f, filesystem, k, true)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("setting the pin %s: %w", k, err), Undo(f, filesystem, claim))
		}
	}
	return ours, nil
}

// Undo clears the pins that the mark on f names, in reverse order, and the mark
// last. It may be repeated: what is gone already is no error.
func Undo(f *os.File, filesystem string, claim Claim) error {
	m, ok, err := ReadMark(f)
	if err != nil || !ok {
		return err
	}
	for i := len(order) - 1; i >= 0; i-- {
		k := order[i]
		if !slices.Contains(m.Kinds, k) {
			continue
		}
		if k == Swap {
			err = claim(false)
		} else {
			err = put(f, filesystem, k, false)
		}
		if err != nil {
			return fmt.Errorf("clearing the pin %s: %w", k, err)
		}
	}
	if err := unix.Fremovexattr(int(f.Fd()), Attribute); err != nil && !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("removing the attribute %s: %w", Attribute, err)
	}
	return nil
}

// UndoFor is Undo where the pins were set for the mapping called name; pins that
// somebody set by hand, or for another mapping, stay.
func UndoFor(f *os.File, filesystem, name string, claim Claim) error {
	m, ok, err := ReadMark(f)
	if err != nil || !ok || m.Name != name {
		return err
	}
	return Undo(f, filesystem, claim)
}

// order is the order in which pins are set; they are cleared in reverse.
var order = []Kind{NoDefrag, F2FS, Swap, Immutable}
