package lifecycle

import (
	"context"
	"log/slog"

	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/blockdev"
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
	s.warnOfFormat(v)
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

// warnOfFormat says once that the image is no plain one: to map it is nearly always a mistake.
func (s *System) warnOfFormat(v *survey.Report) {
	if v.Format.Use == survey.Packed {
		s.log.Warn("the file is "+v.Format.What+", and its device shows it byte for byte, not the disk in it",
			"image", v.Path, "hint", fault.HowTo{Image: v.Path, Remedy: v.Format.Remedy})
	}
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

// CheckFolder says in advance what keeps images in the folder at path from being mapped, and
// nothing of what it could not ask.
func (s *System) CheckFolder(path string) (survey.FolderReport, error) {
	quiet := s.surveyor()
	quiet.Log = slog.New(slog.DiscardHandler)
	r, err := quiet.Folder(path)
	return r, fault.Wrap(path, "", err)
}

// Folder is what is known of a folder before there is an image in it.
type Folder struct {
	survey.FolderReport
	Device string // path of what its file system is mounted from; empty when that is not known
	UUID   string // of its file system; empty when it cannot be read
	Ways   []Way  // out, where no image there can be mapped
}

// DescribeFolder is CheckFolder with the ways out on this machine. With sealed the question is
// about sealed images alone. The table of activations is at tab.
func (s *System) DescribeFolder(path, tab string, sealed bool) (Folder, error) {
	r, err := s.surveyor().Folder(path)
	f := Folder{FolderReport: r}
	if err != nil {
		return f, fault.Wrap(path, "", err)
	}
	if sealed && len(f.Plain.Lacks) == 0 {
		f.Problems = append(f.Problems, f.Sealed.Lacks...)
	}
	if f.Host.Major != 0 {
		f.Device, _ = blockdev.NodePath(s.sysfs, f.Host)
	}
	if _, asleep := blockdev.Suspended(s.sysfs, f.Host); f.Device != "" && !asleep {
		devices := blockdev.Local()
		if d, err := devices.ByNumber(f.Host); err == nil {
			if superblock, err := devices.Filesystem(d); err == nil { // which only root may read
				f.UUID = superblock.UUID
			}
		}
	}
	if !f.Mappable() {
		f.Ways = s.WaysOut(f.FolderReport, tab)
	}
	return f, nil
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
