package lifecycle

import (
	"context"

	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/fault"
	"dmloop/internal/pin"
	"dmloop/internal/survey"
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
// answer can be given without them.
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
	p.Grade = s.surveyor().Resulting(v.Facts, wantedPins(v, o.Pin), o.Gate)
	denies := o.Unsafe || o.NoGuard || o.GuardLater || !s.surveyor().LacksGate(v.File, wantedPins(v, o.Pin), o.Gate)
	if err := o.accept(path, p.Grade, denies); err != nil {
		return nil, err
	}
	p.Status = Status{
		Name: name, UUID: uuid, Image: path, Size: v.Length, ReadOnly: o.ReadOnly || v.Stack.ReadOnly(), Extents: len(v.Layout.Extents),
		Grade: p.Grade, State: guard.Mapping, Guard: !o.NoGuard,
	}
	p.Status.Pins = pin.Resulting(v.Facts.Filesystem, wantedPins(v, o.Pin))
	if s.surveyor().Gated(v.Facts, o.Gate) == nil {
		p.Status.Pins = append(p.Status.Pins, pin.BPF)
	}
	return p, nil
}

// Check runs all rules over the image at path and leaves it as it is. Broken rules
// are in the survey, not in the error.
func (s *System) Check(ctx context.Context, path string, o survey.Options) (*survey.Report, error) {
	v, err := s.look(ctx, path, o)
	if err == nil && !v.Breaks(extents.Unpinnable) && s.surveyor().LacksGate(v.File, pin.Wanted(v.Facts.Filesystem, v.Sealed), o.Gate) {
		v.Problems = append(v.Problems, survey.Gateless())
	}
	return v, err
}

// CheckFolder says in advance what keeps images in the folder at path from being mapped.
func (s *System) CheckFolder(path string) (survey.FolderReport, error) {
	r, err := s.surveyor().Folder(path)
	return r, fault.Wrap(path, "", err)
}

// look is what Check and PlanMap have in common.
func (s *System) look(ctx context.Context, path string, o survey.Options) (*survey.Report, error) {
	img, err := s.openImage(ctx, path)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	o.Look = true
	v, err := s.surveyor().Survey(ctx, img, path, o)
	if err != nil {
		return v, fault.Wrap(path, "", err)
	}
	return v, nil
}
