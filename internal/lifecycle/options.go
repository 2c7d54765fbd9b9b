package lifecycle

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/pin"
	"dmloop/internal/record"
	"dmloop/internal/survey"
)

// The choices of --pin.
const (
	PinAuto      = "auto"      // the strongest that leaves the image's content as it is
	PinImmutable = "immutable" // the inode's flags only
	PinSwap      = "swap"      // the kernel's swap claim and the flags; sealed images only
	PinNone      = "none"      // grade unsafe
)

// MapOptions are the choices of `dmloop map`.
type MapOptions struct {
	survey.Options
	Name     string // empty: the image's base name without its extension
	ReadOnly bool
	Pin      string // "auto", "immutable", "swap" or "none"
	OnChange guard.Policy
	// UdevRules is what udev may do with the content: mapper.UdevLinks or mapper.UdevAll.
	UdevRules string
	NoGuard   bool
	// GuardLater leaves the mapping to a guard that starts later and adopts it. It
	// is for a boot, when nobody else runs yet who could change the image.
	GuardLater bool
	Unsafe     bool
	UUID       string // 32 hex digits, or empty for a random one
	PartScan   bool
	Seal       bool // seal the image first, unless it is sealed
}

// validate refuses words that mean nothing.
func (o *MapOptions) validate() error {
	if o.Pin == "" {
		o.Pin = PinAuto
	}
	if o.OnChange == "" {
		o.OnChange = guard.OnChangeError
	}
	switch o.Gate {
	case GateAuto:
		o.Gate = ""
	case "", guard.GateBPF, guard.GateFanotify, guard.GateNone:
	default:
		return &fault.Error{Class: fault.Usage, Message: "--gate takes auto, bpf, fanotify or none, not " + string(o.Gate)}
	}
	if o.Gate == guard.GateFanotify && o.NoGuard {
		return &fault.Error{Class: fault.Usage, Message: "--gate=fanotify needs a guard"}
	}
	if o.UdevRules == "" {
		o.UdevRules = mapper.UdevLinks
	}
	if o.UdevRules != mapper.UdevLinks && o.UdevRules != mapper.UdevAll {
		return &fault.Error{Class: fault.Usage, Message: "--udev-rules takes links or all, not " + o.UdevRules}
	}
	switch o.Pin {
	case PinAuto, PinImmutable, PinSwap, PinNone:
	default:
		return &fault.Error{Class: fault.Usage, Message: "--pin takes auto, immutable, swap or none, not " + o.Pin}
	}
	o.AsSealed = o.AsSealed || o.Pin == PinSwap
	if _, err := guard.ParsePolicy(string(o.OnChange)); err != nil {
		return &fault.Error{Class: fault.Usage, Message: "--on-change takes error, suspend or report, not " + string(o.OnChange)}
	}
	return nil
}

// request returns the device-mapper name and uuid that the options ask for.
func (o *MapOptions) request(path string) (name, uuid string, err error) {
	if name, err = mangled(path, o.Name); err != nil {
		if what := noFile(path); o.Name == "" && what != nil {
			err = what // such as a dot, which is not the name's fault
		}
		return "", "", err
	}
	if err := o.validate(); err != nil {
		return "", "", err
	}
	uuid, err = newUUID(name, o.UUID)
	return name, uuid, err
}

// DefaultName returns the name that an image's mapping gets: its base name
// without the extension, mangled as libdevmapper does.
func DefaultName(path string) string {
	base := filepath.Base(path)
	if ext := filepath.Ext(base); ext != base {
		base = strings.TrimSuffix(base, ext)
	}
	return base
}

// mangled returns the device-mapper name for what the user asked for.
func mangled(path, name string) (string, error) {
	if name == "" {
		name = DefaultName(path)
	}
	m, err := dmtable.Mangle(name)
	if err == nil {
		err = dmtable.CheckName(m)
	}
	if err != nil {
		return "", &fault.Error{Class: fault.Usage, Subject: name, Message: "not a name for a mapping", Err: err,
			Remedy: advice.NameMapping}
	}
	return m, nil
}

// noFile says what path is when it is not a regular file.
func noFile(path string) error {
	found, err := image.Find(path)
	if err != nil {
		return openError(path, err)
	}
	found.Close()
	return nil
}

// newUUID returns the device-mapper uuid of a mapping. Its length limits the name.
func newUUID(name, id string) (string, error) {
	uuid, err := record.NewUUID(name, id)
	if err == nil {
		err = dmtable.CheckUUID(uuid)
	}
	if err != nil {
		e := &fault.Error{Class: fault.Usage, Subject: name, Message: "not a name or uuid for a mapping", Err: err}
		if errors.As(err, new(*dmtable.NameError)) {
			e.Remedy = advice.ShorterName
		}
		return "", e
	}
	return uuid, nil
}

// accept is the rule unpinnable, once the grade is known.
func (o *MapOptions) accept(path string, grade pin.Grade, denies bool) error {
	switch {
	case grade == pin.Kernel, o.Unsafe, grade == pin.Guarded && !o.NoGuard && (denies || o.GuardLater):
		return nil
	case grade == pin.Guarded && o.NoGuard:
		return fault.Refuse(path, []extents.Problem{{Rule: extents.Unpinnable,
			Message: "the pin has a hole that only a running guard closes (grade guarded)",
			Remedy:  advice.UseGuard}})
	case grade == pin.Guarded:
		return fault.Refuse(path, []extents.Problem{survey.Gateless()})
	}
	return fault.Refuse(path, []extents.Problem{{Rule: extents.Unpinnable,
		Message: "nothing that is in force keeps the blocks in place (grade unsafe)",
		Remedy:  advice.UsePins}})
}

// judge returns the rules that the image breaks, those among them that only the
// options make. Whoever wants no pin and accepts what follows needs no image that can be
// pinned, and an image that the kernel is not given may be open to others.
func (o *MapOptions) judge(v *survey.Report) []extents.Problem {
	problems := v.Problems
	if v.Exposed != nil && (o.Unsafe || !slices.Contains(wantedPins(v, o.Pin), pin.Swap)) {
		problems = slices.DeleteFunc(slices.Clone(problems), func(p extents.Problem) bool {
			return p.Rule == extents.Unpinnable && p.Message == v.Exposed.Message
		})
	}
	if o.Pin == PinNone && o.Unsafe {
		return slices.DeleteFunc(slices.Clone(problems), func(p extents.Problem) bool { return p.Rule == extents.Unpinnable })
	}
	return problems
}

// wantedPins lists the pins that a choice of --pin asks for.
func wantedPins(v *survey.Report, choice string) []pin.Kind {
	switch choice {
	case PinNone:
		return nil
	case PinImmutable:
		return pin.Wanted(v.Facts.Filesystem, false)
	}
	return pin.Wanted(v.Facts.Filesystem, v.Sealed)
}
