package pin

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"dmloop/internal/fstype"

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
	// Elsewhere a flag that is set later is never on disk without this attribute.
	if fstype.Of(filesystem).SyncAttributes {
		return f.Sync()
	}
	return nil
}

// Wanted lists the pins that the file system offers, in the order in which they
// are set. The swap claim comes right before the immutable flag: swapon refuses an
// immutable file, and so does swapoff, which is why it is released after it.
func Wanted(filesystem string, sealed bool) []Kind {
	var kinds []Kind
	fs := fstype.Of(filesystem)
	if fs.Pin != "" && !(sealed && fs.SwapPins) {
		kinds = append(kinds, fs.Pin)
	}
	if sealed {
		kinds = append(kinds, Swap)
	}
	if fs.Bare {
		return kinds
	}
	return append(kinds, Immutable)
}

// WithoutClaim leaves the swap claim out of kinds.
func WithoutClaim(kinds []Kind) []Kind {
	return slices.DeleteFunc(slices.Clone(kinds), func(k Kind) bool { return k == Swap })
}

// Resulting lists what is in force when the wanted kinds are set.
func Resulting(filesystem string, wanted []Kind) []Kind {
	fs := fstype.Of(filesystem)
	if !fs.SwapPins || !slices.Contains(wanted, Swap) || slices.Contains(wanted, fs.Pin) {
		return wanted
	}
	return append([]Kind{fs.Pin}, wanted...)
}

// Claim takes and ends the kernel's swap claim on the file; package claim provides it.
type Claim interface {
	// Active reports whether the kernel holds the file.
	Active() (bool, error)
	// Take makes the kernel hold the file, which is immutable when Take is called. It
	// calls lift, at its place among its steps, to end that. When it fails the kernel
	// does not hold the file.
	Take(lift func() error) error
	// Verify looks whether what the kernel holds is what is meant.
	Verify() error
	// End ends the claim on a file that is not immutable. It does nothing when there is
	// nothing to do.
	End() error
}

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
// all is as it was: what was in force before stays so, or is so again.
//
// Where files have neither flags nor attributes there is no mark: a claim that was taken
// before is not ours, and the caller has to remember the one that is.
func Set(f *os.File, filesystem, name string, kinds []Kind, claim Claim) (ours []Kind, err error) {
	for _, k := range kinds {
		if !slices.Contains(order, k) {
			return nil, fmt.Errorf("there is no pin %q", k)
		}
	}
	if fstype.Of(filesystem).Bare {
		return setBare(kinds, claim)
	}
	s := setting{file: f, filesystem: filesystem, claim: claim}
	if s.inForce, err = InForce(f, filesystem); err != nil {
		return nil, err
	}
	if s.old, s.marked, err = ReadMark(f); err != nil {
		return nil, err
	}
	if foreign, err := Foreign(f, s.inForce); err != nil || foreign {
		return nil, err
	}
	if slices.Contains(kinds, Swap) {
		active, err := claim.Active()
		if err == nil && active {
			s.inForce = append(s.inForce, Swap)
			err = claim.Verify()
		}
		if err != nil {
			return nil, err
		}
	}
	if s.marked && s.old.Name == "" {
		name = "" // pinned by hand before: stays pinned when the mapping goes
	}
	todo := s.todo(kinds)
	ours = slices.Clone(s.old.Kinds)
	for _, k := range order {
		if !slices.Contains(ours, k) && slices.Contains(todo, k) {
			ours = append(ours, k)
		}
	}
	if err := s.set(Mark{Version: markVersion, Name: name, Kinds: ours}, todo); err != nil {
		return nil, errors.Join(err, s.takeBack())
	}
	return ours, nil
}

// setBare is Set where the claim is all that there is.
func setBare(kinds []Kind, claim Claim) (ours []Kind, err error) {
	if !slices.Contains(kinds, Swap) {
		return nil, nil
	}
	active, err := claim.Active()
	if err == nil && active {
		return nil, claim.Verify()
	}
	if err == nil {
		err = claim.Take(func() error { return nil })
	}
	if err != nil {
		return nil, fmt.Errorf("setting the pin %s: %w", Swap, err)
	}
	return []Kind{Swap}, nil
}

// undoBare ends a claim of which nothing on the file says whose it is, when it is the
// claim of a sealed image.
func undoBare(claim Claim) error {
	active, err := claim.Active()
	if err != nil || !active {
		return err
	}
	if err := claim.Verify(); err != nil {
		return fmt.Errorf("clearing the pin %s: %w", Swap, err)
	}
	return endBare(claim)
}

func endBare(claim Claim) error {
	if err := claim.End(); err != nil {
		return fmt.Errorf("clearing the pin %s: %w", Swap, err)
	}
	return nil
}

// setting is one run of Set: what was there before, and what the run has done so far.
type setting struct {
	file       *os.File
	filesystem string
	claim      Claim
	inForce    []Kind // before, the claim included
	old        Mark
	marked     bool

	immutable bool   // now
	remarked  bool   // the mark is not what it was
	done      []Kind // set by this run, except for the immutable flag
}

// todo lists what of kinds is not in force, in order.
func (s *setting) todo(kinds []Kind) (todo []Kind) {
	for _, k := range order {
		switch {
		case !slices.Contains(kinds, k), slices.Contains(s.inForce, k):
		case k == F2FS && slices.Contains(kinds, Swap): // swapon sets it, also where nobody else can
		default:
			todo = append(todo, k)
		}
	}
	return todo
}

// set does what Set is for. The immutable flag comes off only where something cannot be
// done while it is on: the mark cannot be changed then.
func (s *setting) set(mark Mark, todo []Kind) error {
	was := slices.Contains(s.inForce, Immutable)
	s.immutable = was
	same := s.marked && s.old.Name == mark.Name && slices.Equal(s.old.Kinds, mark.Kinds)
	flags := slices.DeleteFunc(slices.Clone(todo), func(k Kind) bool { return k == Swap || k == Immutable })
	if len(todo) == 0 && (same || !s.marked) {
		return nil
	}
	if !same {
		if err := s.flag(false); err != nil {
			return fmt.Errorf("lifting the immutable flag: %w", err)
		}
		s.remarked = true
		if err := writeMark(s.file, s.filesystem, mark); err != nil {
			return err
		}
	}
	for _, k := range flags {
		if err := s.put(k); err != nil {
			return fmt.Errorf("setting the pin %s: %w", k, err)
		}
		s.done = append(s.done, k)
	}
	if slices.Contains(todo, Swap) {
		if err := s.take(); err != nil {
			return fmt.Errorf("setting the pin %s: %w", Swap, err)
		}
	}
	if !was && !slices.Contains(todo, Immutable) {
		return s.flag(false) // the claim wanted it for a moment
	}
	if err := s.flag(true); err != nil {
		return fmt.Errorf("setting the pin %s: %w", Immutable, err)
	}
	return nil
}

// put sets another flag, with the immutable one on where the file system lets it: the
// file's owner can clear these, and must not have the immutable flag lifted by that.
func (s *setting) put(k Kind) error {
	err := put(s.file, s.filesystem, k, true)
	if !errors.Is(err, unix.EPERM) || !s.immutable {
		return err
	}
	if err := s.flag(false); err != nil {
		return err
	}
	return put(s.file, s.filesystem, k, true)
}

// take has the claim taken, for which the file has to be immutable first.
func (s *setting) take() error {
	if err := s.flag(true); err != nil {
		return err
	}
	if err := s.claim.Take(func() error { return s.flag(false) }); err != nil {
		return err
	}
	s.done = append(s.done, Swap)
	return nil
}

// flag sets or clears the immutable flag where it is not so.
func (s *setting) flag(on bool) error {
	if s.immutable == on {
		return nil
	}
	err := put(s.file, s.filesystem, Immutable, on)
	if err == nil {
		s.immutable = on
	}
	return err
}

// takeBack undoes what set did before it failed, and nothing else. A flag that can stay
// on is not taken off for it.
func (s *setting) takeBack() error {
	was := slices.Contains(s.inForce, Immutable)
	if len(s.done) == 0 && !s.remarked {
		return s.flag(was)
	}
	if err := s.flag(false); err != nil {
		return fmt.Errorf("clearing the pin %s: %w", Immutable, err)
	}
	var failed []error
	for _, k := range slices.Backward(s.done) {
		var err error
		if k == Swap {
			err = s.claim.End()
		} else {
			err = put(s.file, s.filesystem, k, false)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("clearing the pin %s: %w", k, err))
		}
	}
	switch {
	case !s.remarked || len(failed) > 0: // the mark names what could not be cleared
	case s.marked:
		failed = append(failed, writeMark(s.file, s.filesystem, s.old))
	default:
		failed = append(failed, dropMark(s.file))
	}
	return errors.Join(append(failed, s.flag(was))...)
}

func dropMark(f *os.File) error {
	if err := unix.Fremovexattr(int(f.Fd()), Attribute); err != nil && !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("removing the attribute %s: %w", Attribute, err)
	}
	return nil
}

// ErrForeign says that somebody else made the file immutable.
var ErrForeign = errors.New("somebody else made the file immutable")

// Lift takes the immutable flag off that dmloop set, as the mark on f says, for a change after
// which Set puts it on again: the mark stays. A file without the flag is left as it is; a
// flag of somebody else's is ErrForeign.
func Lift(f *os.File, filesystem string) error {
	inForce, err := InForce(f, filesystem)
	if err != nil || !slices.Contains(inForce, Immutable) {
		return err
	}
	foreign, err := Foreign(f, inForce)
	switch {
	case err != nil:
		return err
	case foreign:
		return ErrForeign
	}
	if err := put(f, filesystem, Immutable, false); err != nil {
		return fmt.Errorf("lifting the immutable flag: %w", err)
	}
	return nil
}

// EndClaim ends the kernel's claim on f where it was taken for the mapping called name or
// by hand, and leaves the other pins: the immutable flag is off for it as long as that
// takes. The mark of a pin by hand goes on naming the claim, as it does after a boot, so
// that the next Set takes it again.
func EndClaim(f *os.File, filesystem, name string, claim Claim) error {
	m, ok, err := ReadMark(f)
	if err != nil || !ok || m.Name != name && m.Name != "" || !slices.Contains(m.Kinds, Swap) {
		return err
	}
	s := setting{file: f, filesystem: filesystem, claim: claim}
	if s.inForce, err = InForce(f, filesystem); err != nil {
		return err
	}
	s.immutable = slices.Contains(s.inForce, Immutable)
	if err := s.flag(false); err != nil {
		return fmt.Errorf("lifting the immutable flag: %w", err)
	}
	if err := claim.End(); err != nil {
		return errors.Join(fmt.Errorf("clearing the pin %s: %w", Swap, err), s.flag(slices.Contains(s.inForce, Immutable)))
	}
	if m.Name != "" {
		m.Kinds = slices.DeleteFunc(m.Kinds, func(k Kind) bool { return k == Swap })
		err = writeMark(f, filesystem, m)
	}
	if fs := fstype.Of(filesystem); fs.SwapPins && slices.Contains(m.Kinds, fs.Pin) { // swapoff took it off as well
		err = errors.Join(err, put(f, filesystem, fs.Pin, true))
	}
	return errors.Join(err, s.flag(slices.Contains(m.Kinds, Immutable)))
}

// Undo clears the pins that the mark on f names, in reverse order, and the mark
// last. It may be repeated: what is gone already is not an error. Where there are no marks it
// ends the claim of a sealed image, whoever took it.
func Undo(f *os.File, filesystem string, claim Claim) error {
	if fstype.Of(filesystem).Bare {
		return undoBare(claim)
	}
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
			err = claim.End()
		} else {
			err = put(f, filesystem, k, false)
		}
		if err != nil {
			return fmt.Errorf("clearing the pin %s: %w", k, err)
		}
	}
	return dropMark(f)
}

// UndoFor is Undo where the pins were set for the mapping called name; pins that
// somebody set by hand, or for another mapping, stay. Where there are no marks recorded
// has to say what was set for it.
func UndoFor(f *os.File, filesystem, name string, recorded []Kind, claim Claim) error {
	if fstype.Of(filesystem).Bare {
		if !slices.Contains(recorded, Swap) {
			return nil
		}
		return endBare(claim)
	}
	m, ok, err := ReadMark(f)
	if err != nil || !ok || m.Name != name {
		return err
	}
	return Undo(f, filesystem, claim)
}

// order is the order in which pins are set; they are cleared in reverse.
var order = []Kind{NoDefrag, F2FS, Swap, Immutable}
