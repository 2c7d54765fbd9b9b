package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/claim"
	"dmloop/internal/fault"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/pin"
	"dmloop/internal/record"
	"dmloop/internal/seal"
)

// DefaultMaxExtents is the limit of pieces unless the caller sets another one.
const DefaultMaxExtents = 100_000

// Window is the part of the image's content that is mapped: Limit bytes from
// Offset, or all that follows when Limit is 0.
type Window struct {
	Offset, Limit extents.Bytes
}

// of returns the window's length in the image at path, of size bytes.
func (w Window) of(path string, size extents.Bytes) (extents.Bytes, error) {
	switch {
	case w.Offset < 0 || w.Limit < 0:
		return 0, &fault.Error{Class: fault.Usage, Subject: path, Message: "offset and size limit cannot be negative"}
	case size > 0 && w.Offset >= size:
		return 0, &fault.Error{Class: fault.Usage, Subject: path, Message: fmt.Sprintf("offset %d lies beyond the image's %d bytes", w.Offset, size)}
	}
	length := size - w.Offset
	if w.Limit > 0 && w.Limit < length {
		length = w.Limit
	}
	return length, nil
}

// SurveyOptions says how an image is to be judged.
type SurveyOptions struct {
	Window     Window
	MaxExtents int  // 0 is DefaultMaxExtents
	AsSealed   bool // the administrator says that the image is sealed, and wants nothing else
	Unattended bool // nobody reads a note: an image that only looks sealed is refused
	look       bool // only look: what an unprivileged caller may not ask is left out, and said
}

// Survey is all that was read about an image, as plain values, and what is wrong
// with it.
type Survey struct {
	Path     string // as the user gave it
	Identity image.Identity
	Facts    image.Facts
	Layout   extents.Layout // of the whole file, clipped and merged
	raw      extents.Layout // as it was read
	Length   extents.Bytes  // bytes that the device would have
	Sealed   bool
	Record   seal.Record   // of a sealed image
	Content  extents.Bytes // size of the content, less than the file's when it is sealed
	Stack    blockdev.Stack
	Table    dmtable.Table // empty when there are problems
	InForce  []pin.Kind
	looks    bool             // only its content says that it is sealed
	Foreign  bool             // somebody else made the file immutable
	exposed  *extents.Problem // others than root may open the sealed image; one of Problems
	Problems []extents.Problem

	onReadOnlyDevice bool // what the host file system is mounted from
}

// survey runs all rules over img. It changes nothing but the page cache. The write lease
// under which it reads is an early look only: what counts is the one that is taken once
// the image is pinned. The error is for what could not be read; broken rules are Problems.
func (s *System) survey(ctx context.Context, img *image.Image, path string, o SurveyOptions) (v *Survey, err error) {
	v = &Survey{Path: path}
	if o.MaxExtents < 0 || o.MaxExtents > dmtable.MaxRows {
		return v, &fault.Error{Class: fault.Usage, Message: fmt.Sprintf("the limit of extents must lie between 1 and %d", dmtable.MaxRows)}
	}
	if v.Identity, err = img.Identity(); err != nil {
		return v, err
	}
	if v.Facts, err = img.Facts(); err != nil {
		return v, err
	}
	v.onReadOnlyDevice = s.onReadOnlyDevice(v.Facts)
	if v.Identity.Size > 0 {
		if err := s.surveySeal(v, img, o); err != nil {
			return v, err
		}
	}
	if v.Length, err = o.Window.of(path, v.Content); err != nil {
		return v, err
	}
	v.Problems = append(v.Problems, v.Facts.Problems(o.Window.Offset, v.Length)...)
	if v.supported() && v.Identity.Size > 0 {
		if err := s.surveyBlocks(ctx, v, img, o); err != nil {
			return v, err
		}
	}
	if v.looks { // to seal it once more would be the wrong advice for a copy
		for i, p := range v.Problems {
			if p.Rule == extents.Unsealed {
				v.Problems[i].Remedy = advice.AdoptOrSeal
			}
		}
	}
	v.betterRemedies(img, o)
	return v, nil
}

// supported reports whether the file system is one whose layouts mean something.
func (v *Survey) supported() bool { return !v.breaks(extents.UnsupportedFS) }

// breaks reports whether a rule is known to be broken.
func (v *Survey) breaks(rule extents.Rule) bool {
	return slices.ContainsFunc(v.Problems, func(p extents.Problem) bool { return p.Rule == rule })
}

// surveyBlocks judges who uses the file, where it lies and what lies below it.
func (s *System) surveyBlocks(ctx context.Context, v *Survey, img *image.Image, o SurveyOptions) error {
	release, err := s.surveyUsers(ctx, v, img, o)
	if err != nil {
		return err
	}
	defer release()
	if err := img.File().Sync(); err != nil {
		return err
	}
	first, err := extents.Read(img.File())
	if err != nil {
		return err
	}
	again, err := v.readAgain(img, first)
	if err != nil {
		return err
	}
	if v.InForce, err = pin.InForce(img.File(), v.Facts.Filesystem); err != nil {
		return err
	}
	if v.Foreign, err = pin.Foreign(img.File(), v.InForce); err != nil {
		return err
	}
	v.add(v.unpinnable())
	if v.Sealed && !v.Foreign {
		v.exposed = claim.Exposed(v.Facts)
		v.add(v.exposed)
	}
	if err := s.surveyCache(ctx, v, img, o); err != nil { // after the layout, which takes no time by the file's size
		return err
	}
	problems, err := s.locate(v, img, again, o)
	if v.breaks(extents.MultiDevice) { // which btrfs says once more
		problems = slices.DeleteFunc(problems, func(p extents.Problem) bool { return p.Rule == extents.MultiDevice })
	}
	v.Problems = append(v.Problems, problems...)
	return err
}

// surveyCache drops the file's pages in memory and judges what is left.
func (s *System) surveyCache(ctx context.Context, v *Survey, img *image.Image, o SurveyOptions) error {
	cache, err := img.DropCache(ctx)
	if err != nil {
		return err
	}
	if o.look && !cache.Exact && os.Geteuid() != 0 {
		s.log.Warn("not checked without root: whether changed pages of the file are in memory", "image", v.Path)
		return nil
	}
	v.Problems = append(v.Problems, cache.Problems()...)
	return nil
}

// readAgain is the rule unstable. It returns the second reading.
func (v *Survey) readAgain(img *image.Image, first extents.Layout) (extents.Layout, error) {
	same, err := extents.Same(img.File(), first)
	if same || err != nil {
		return first, err
	}
	again, err := extents.Read(img.File())
	if diff := extents.Diff(first, again); diff != "" && err == nil {
		v.Problems = append(v.Problems, unstable(diff))
	}
	return again, err
}

// surveyUsers takes the write lease as proof that nobody else has the file open.
// The kernel's own claim of an image that dmloop pinned is no stranger, and keeps
// every other one from doing harm.
func (s *System) surveyUsers(ctx context.Context, v *Survey, img *image.Image, o SurveyOptions) (release func(), err error) {
	claimed, err := v.claimedByUs(img)
	if err != nil {
		return func() {}, err
	}
	if claimed {
		v.Problems = slices.DeleteFunc(v.Problems, func(p extents.Problem) bool { return p.Rule == extents.ActiveSwap })
		return func() {}, nil
	}
	patience := s.patience.openers
	if o.look {
		patience = min(lookPatience, patience)
	}
	lease, err := s.soleOpener(ctx, img, v.Path, patience)
	var p *extents.Refusal
	switch {
	case errors.As(err, &p):
		v.Problems = append(v.Problems, p.Problems...)
		return func() {}, nil
	case o.look && errors.Is(err, fs.ErrPermission):
		s.log.Warn("not checked without root: whether somebody else has the file open", "image", v.Path)
		return func() {}, nil
	case err != nil:
		return func() {}, err
	}
	// Closing the descriptor gives the lease back as well, so a failure is harmless.
	return func() { _ = lease.Release() }, nil
}

// locate judges a layout of the file and turns it into the table: the part of the
// pipeline that a sealed image goes through again once the kernel holds it.
func (s *System) locate(v *Survey, img *image.Image, file extents.Layout, o SurveyOptions) ([]extents.Problem, error) {
	limit := o.MaxExtents
	if limit == 0 {
		limit = DefaultMaxExtents
	}
	v.raw, v.Layout = file, file.Clip().Merge()
	problems := file.Problems(v.Facts.BlockSize, limit)
	sound := len(problems) == 0
	host, onHost, more, err := s.hostLayout(v, img, v.Layout)
	if err != nil || len(more) > 0 {
		return append(problems, more...), err
	}
	conn, connErr := s.mapper()
	var source blockdev.TableSource
	if connErr == nil {
		source = conn
	}
	stack, problem, err := blockdev.ReadStack(s.sysfs, source, host)
	if err != nil {
		return problems, errors.Join(connErr, err)
	}
	if problem != nil {
		return append(problems, *problem), nil
	}
	v.Stack = stack
	if !sound {
		return problems, nil
	}
	content, problem, err := contentLayout(onHost, v.Sealed, v.Record)
	if err != nil {
		return problems, err
	}
	if problem != nil {
		return append(problems, *problem), nil
	}
	from, length := v.wholeBlocks(o.Window.Offset)
	if length == 0 {
		return problems, nil
	}
	window, err := content.Window(from, length)
	if err != nil {
		return problems, err
	}
	segments, problems := stack.Resolve(window, from)
	if len(problems) > 0 {
		return problems, nil
	}
	if v.Table, err = dmtable.Build(segments); err != nil {
		return nil, err
	}
	return s.overlaps(conn, stack.Host, segments, from)
}

// wholeBlocks returns the whole blocks of the window that begins at offset: all of it,
// unless the rule size-unaligned is broken, which says so itself.
func (v *Survey) wholeBlocks(offset extents.Bytes) (from, length extents.Bytes) {
	block := max(v.Facts.BlockSize, dmtable.SectorSize)
	end := (offset + v.Length) / block * block
	from = (offset + block - 1) / block * block
	return from, max(end-from, 0)
}

// overlaps compares the segments with every live device-mapper device, except for those
// that the image's own host device stands on. Of mappings it says which bytes.
func (s *System) overlaps(conn *mapper.Mapper, host dmtable.Device, segments []dmtable.Segment, from extents.Bytes) ([]extents.Problem, error) {
	others, err := conn.Strangers(host)
	if err != nil || len(others) == 0 {
		return nil, err
	}
	var mappings []blockdev.Mapping
	var rest []mapper.Stranger
	for _, o := range others {
		if strings.HasPrefix(o.UUID, record.UUIDPrefix) {
			mappings = append(mappings, o.Mapping)
		} else {
			rest = append(rest, o)
		}
	}
	problems, err := blockdev.Overlaps(segments, from, mappings)
	if err != nil || len(problems) > 0 {
		return problems, err
	}
	shared, err := mapper.Sharing(segments, nil, rest)
	for _, o := range shared {
		problems = append(problems, extents.Problem{Rule: extents.Overlap,
			Message: fmt.Sprintf("the live device-mapper device %s (%s) lies on the image's blocks", o.Name, o.Device),
			Remedy:  advice.RemoveDevice.Of(o.Name)})
	}
	return problems, err
}

// lookPatience is how long a command that looks only waits for those who have an image
// open: it may look at many images.
const lookPatience = time.Second

// Waiting says how a command that writes to the image at path waits for those who have
// it open.
func (s *System) Waiting(path string) image.Wait { return s.waiting(path, s.patience.openers) }

// waiting says how a use case waits for those who have the image at path open.
func (s *System) waiting(path string, patience time.Duration) image.Wait {
	return image.Wait{Patience: patience, Say: func(whom string) {
		s.log.Warn("waiting for somebody who has the image open", "image", path, "who", whom)
	}}
}

// soleOpener takes the write lease, the proof that nobody else has the file open.
func (s *System) soleOpener(ctx context.Context, img *image.Image, path string, patience time.Duration) (*image.Lease, error) {
	return image.AwaitSoleOpener(ctx, img.File(), s.waiting(path, patience))
}

func (v *Survey) add(p *extents.Problem) {
	if p != nil {
		v.Problems = append(v.Problems, *p)
	}
}

func unstable(diff string) extents.Problem {
	return extents.Problem{
		Rule:    extents.Unstable,
		Message: "two readings of the layout in a row differ: " + diff,
	}
}

// emptyCache is the rule dirty-cache at the moment of truth: not one page may be
// left, since a clean one would hide from readers of the file what the device
// writes. The lease has shown that nobody has the file mapped.
func emptyCache(c image.CacheState) []extents.Problem {
	problems := c.Problems()
	if len(problems) == 0 && c.Cached > 0 {
		problems = []extents.Problem{{Rule: extents.DirtyCache,
			Message: fmt.Sprintf("%d pages of the file stay in memory after they were dropped", c.Cached),
			Remedy:  advice.SeeReaders}}
	}
	return problems
}
