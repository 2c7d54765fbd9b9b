package lifecycle

import (
	"context"
	"slices"

	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/fault"
	"dmloop/internal/mapper"
	"dmloop/internal/pin"
	"dmloop/internal/survey"
)

// The choices of --pin.
const (
	PinAuto      = "auto"      // the strongest that leaves the image's content as it is
	PinImmutable = "immutable" // the inode's flags only
	PinSwap      = "swap"      // the kernel's swap claim and the flags; sealed images only
	PinNone      = "none"      // grade unsafe
)

// MapPlan is what map would do.
type MapPlan struct {
	Name, UUID string
	Grade      pin.Grade // when every pin that is wanted can be set
	Survey     *survey.Report
	Status     Status // as map would report it
}

// PlanMap verifies the image at path as map does and returns what map would load,
// without changing anything. It needs neither root nor device-mapper as far as the
// answer can be had without them.
func (s *System) PlanMap(ctx context.Context, path string, o MapOptions) (*MapPlan, error) {
	name, uuid, err := o.request(path)
	if err != nil {
		return nil, err
	}
	v, err := s.look(ctx, path, o.Options)
	if err != nil {
		return nil, err
	}
	if problems := o.judge(v); len(problems) > 0 {
		return nil, fault.Refuse(path, problems)
	}
	p := &MapPlan{Name: name, UUID: uuid, Survey: v}
	p.Grade = survey.Resulting(v.Facts, wantedPins(v, o.Pin))
	denies := o.Unsafe || o.NoGuard || o.GuardLater || !s.surveyor().LacksGate(v.File, wantedPins(v, o.Pin))
	if err := o.accept(path, p.Grade, denies); err != nil {
		return nil, err
	}
	p.Status = Status{
		Name: name, UUID: uuid, Image: path, Size: v.Length, ReadOnly: o.ReadOnly || v.Stack.ReadOnly(), Extents: len(v.Layout.Extents),
		Grade: p.Grade, State: guard.Mapping, Guard: !o.NoGuard,
	}
	p.Status.Pins = pin.Resulting(v.Facts.Filesystem, wantedPins(v, o.Pin))
	return p, nil
}

// judge returns the rules that the image breaks, those among them that only the
// options make. Who wants no pin and accepts what follows needs no image that can be
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

// validate refuses words that mean nothing.
func (o *MapOptions) validate() error {
	if o.Pin == "" {
		o.Pin = PinAuto
	}
	if o.OnChange == "" {
		o.OnChange = guard.OnChangeError
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
