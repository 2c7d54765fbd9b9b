package survey

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
	"dmloop/internal/pin"
)

// pins reads what pins the image.
func pins(img *image.Image, f File) (p Pins, err error) {
	if p.InForce, err = pin.InForce(img.File(), f.Facts.Filesystem); err != nil {
		return p, err
	}
	p.Foreign, err = pin.Foreign(img.File(), p.InForce)
	return p, err
}

// unpinnable predicts the rule of this name: whether a pin of grade guarded or
// better can be set for the image as it is. Setting the pins has the last word.
func unpinnable(f File, s Sealing, p Pins) *extents.Problem {
	grade := Resulting(f.Facts, pin.Wanted(f.Facts.Filesystem, s.Sealed))
	problem := func(message string, remedy extents.Remedy) *extents.Problem {
		return &extents.Problem{Rule: extents.Unpinnable, Message: message, Remedy: remedy}
	}
	switch fs := fstype.Of(f.Facts.Filesystem); {
	case fs.Immutable == pin.Unsafe && !s.Sealed:
		return nil // the rule unsealed says it better
	case p.Foreign && pin.GradeOf(pin.Evidence{Filesystem: f.Facts.Filesystem, Reflink: f.Facts.Reflink, InForce: p.InForce, Proof: true}) == pin.Unsafe:
		return problem("somebody made the file immutable, so the pin that is needed here cannot be set", advice.ClearFlag)
	case grade == pin.Unsafe:
		return problem("no pin holds the blocks on "+f.Facts.Filesystem, advice.MoveImage)
	case f.Facts.ReadOnly && !f.Facts.Immutable():
		p := readOnlyProblem(f.Facts, f.ReadOnlyDevice)
		return &p
	case f.Facts.Filesystem == "f2fs" && f.Facts.Mount.HasSuperOption("mode=lfs"):
		p := lfsMode()
		return &p
	case f.Facts.Filesystem == "f2fs" && !s.Sealed && !f.Facts.Pin.Pinned && !pinsWrittenFiles(kernelVersion()):
		return problem("this kernel's f2fs pins only files without blocks (EFBIG)",
			advice.PinFirst)
	}
	return nil
}

// readOnlyProblem is the rule unpinnable on a file system that nobody can write to.
func readOnlyProblem(f image.Facts, device bool) extents.Problem {
	if device {
		return extents.Problem{Rule: extents.Unpinnable, Message: "the file system is on a read-only device, so the image cannot be pinned", Remedy: advice.MapReadOnly}
	}
	return extents.Problem{Rule: extents.Unpinnable, Message: "the file system is mounted read-only, so the image cannot be pinned",
		Remedy: advice.RemountWritable.Of(f.Mount.Point)}
}

// lfsMode is the rule unpinnable on f2fs with mode=lfs: f2fs_ioc_set_pin_file and
// f2fs_swap_activate refuse it with EINVAL.
func lfsMode() extents.Problem {
	return extents.Problem{Rule: extents.Unpinnable, Remedy: advice.MountWithoutLFS,
		Message: "f2fs is mounted with mode=lfs, which rewrites nothing in place and therefore neither pins a file nor takes one for swap"}
}

// Gated says why the gate in the kernel cannot guard an image; nil where it can, and is
// wanted. What btrfs calls a device is none that the kernel's programs see.
func (s Surveyor) Gated(f image.Facts, wanted guard.Gate) error {
	switch {
	case wanted != "" && wanted != guard.GateBPF:
		return fmt.Errorf("the gate is %s", wanted)
	case fstype.Of(f.Filesystem).OwnAddresses:
		return fmt.Errorf("images on %s are sealed, and the kernel refuses what would move them", f.Filesystem)
	case s.Gate == nil:
		return errors.New("nobody asked the kernel")
	}
	return s.Gate()
}

// Resulting is the grade when every pin that is wanted can be set.
func (s Surveyor) Resulting(f image.Facts, wanted []pin.Kind, how guard.Gate) pin.Grade {
	if s.Gated(f, how) == nil {
		wanted = append(slices.Clone(wanted), pin.BPF)
	}
	return Resulting(f, wanted)
}

// Resulting is the grade when these pins and no other are in force.
func Resulting(f image.Facts, wanted []pin.Kind) pin.Grade {
	return pin.GradeOf(pin.Evidence{Filesystem: f.Filesystem, Reflink: f.Reflink,
		InForce: pin.Resulting(f.Filesystem, wanted), Proof: true})
}

// LacksGate reports whether a guard has to deny opens of the image when these pins are
// set, and this kernel lets none do so. Where the kernel does not tell, that is said.
func (s Surveyor) LacksGate(f File, wanted []pin.Kind, how guard.Gate) bool {
	if Resulting(f.Facts, wanted) != pin.Guarded || s.Gated(f.Facts, how) == nil {
		return false
	}
	denies, err := s.KernelDenies()
	switch {
	case errors.Is(err, fs.ErrPermission):
		s.Log.Warn("not checked without root: whether this kernel can deny opens, which the image's pin needs", "image", f.Path)
	case err != nil:
		s.Log.Warn("not checked: whether this kernel can deny opens, which the image's pin needs", "image", f.Path, "error", err)
	}
	return err == nil && !denies
}

// Gateless is the rule unpinnable where a guard would have to deny opens and cannot.
func Gateless() extents.Problem {
	return extents.Problem{Rule: extents.Unpinnable,
		Message: "the pin has a hole that only a guard closes, and this kernel cannot deny opens (CONFIG_FANOTIFY_ACCESS_PERMISSIONS)",
		Remedy:  advice.SealOrUnsafe}
}
