// Package survey looks at an image and answers with values: what the file is, whether it is
// sealed, what pins it, where it lies, and which rules it breaks. It changes nothing but the
// page cache. Each stage takes what the stages before it found, and returns its own.
package survey

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/claim"
	"dmloop/internal/fault"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
	"dmloop/internal/mapper"
	"dmloop/internal/observe"
	"dmloop/internal/pin"
	"dmloop/internal/record"
	"dmloop/internal/seal"
)

// DefaultMaxExtents is the limit of extents unless the caller sets another.
const DefaultMaxExtents = 100_000

// Window is the part of the image's content that is mapped: Limit bytes from
// Offset, or all that follows when Limit is 0.
type Window struct {
	Offset, Limit extents.Bytes
}

// Of returns the window's length in the image at path, of size bytes.
func (w Window) Of(path string, size extents.Bytes) (extents.Bytes, error) {
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

// Options say how an image is to be judged.
type Options struct {
	Window     Window
	MaxExtents int        // 0 is DefaultMaxExtents
	AsSealed   bool       // the administrator says that the image is sealed, and wants nothing else
	Unattended bool       // nobody reads a note: an image that only looks sealed is refused
	Look       bool       // only look: what an unprivileged caller may not ask is left out, and said
	Own        string     // uuid of a live device that may lie on the image
	Gate       guard.Gate // what is to deny opens by others; empty: the best that can be had
}

// File is what a file is, whatever it holds.
type File struct {
	Path           string // as the user gave it
	Identity       image.Identity
	Facts          image.Facts
	ReadOnlyDevice bool // nobody can write to the device that its file system is mounted from
}

// Sealing says whether an image is sealed, and how.
type Sealing struct {
	Sealed  bool
	Record  seal.Record   // of a sealed image
	Content extents.Bytes // size of the content, less than the file's when it is sealed
	Format  Format        // what the content is, if it is not the plain content of a disk
	looks   bool          // only its content says that it is sealed
}

// Pins is what pins an image already.
type Pins struct {
	InForce []pin.Kind
	Foreign bool // somebody else made the file immutable
}

// Place is where an image lies.
type Place struct {
	Read   extents.Layout // of the whole file, as it was read
	Layout extents.Layout // of the whole file, clipped and merged
	Stack  blockdev.Stack
	Table  dmtable.Table // of the window's content; empty when a rule is broken
}

// Report is all that was read about an image, as plain values, and what is wrong with it.
type Report struct {
	File
	Sealing
	Pins
	Place
	Length   extents.Bytes    // bytes that the device would have
	Exposed  *extents.Problem // others than root may open the sealed image; one of Problems
	Problems []extents.Problem
}

// Surveyor is what a survey needs of the machine.
type Surveyor struct {
	Log          *slog.Logger
	Sysfs        string // where sysfs is mounted
	Mapper       func() (*mapper.Mapper, error)
	Openers      time.Duration        // how long those who have an image open are waited for
	KernelDenies func() (bool, error) // whether this kernel lets a guard deny opens
	Gate         func() error         // why the gate in the kernel cannot be had; nil where it can
}

// Survey runs all rules over img, which the user called path. The write lease under which
// it reads is an early look only: what counts is the one that is taken once the image is
// pinned. The error is for what could not be read; broken rules are Problems.
func (s Surveyor) Survey(ctx context.Context, img *image.Image, path string, o Options) (*Report, error) {
	r := &Report{}
	if o.MaxExtents < 0 || o.MaxExtents > dmtable.MaxRows {
		return r, &fault.Error{Class: fault.Usage, Message: fmt.Sprintf("the limit of extents must lie between 1 and %d", dmtable.MaxRows)}
	}
	var err error
	if r.File, err = s.file(img, path); err != nil {
		return r, err
	}
	if r.Identity.Size > 0 {
		if r.Sealing, r.Problems, err = s.sealing(img, r.File, o); err != nil {
			return r, err
		}
	}
	if r.Length, err = o.Window.Of(path, r.Content); err != nil {
		return r, err
	}
	if r.Format.Use == Footer && o.Window.Offset+r.Length <= r.Content-vhdFooter {
		r.Format = Format{} // the window leaves it out
	}
	r.add(r.Facts.Problems(o.Window.Offset, r.Length)...)
	if !r.Breaks(extents.UnsupportedFS) && r.Identity.Size > 0 { // else layouts mean nothing
		if err := s.blocks(ctx, img, r, o); err != nil {
			return r, err
		}
	}
	if r.looks && !fstype.Of(r.Facts.Kind()).Bare { // to seal it once more would be the wrong advice for a copy
		for i, p := range r.Problems {
			if p.Rule == extents.Unsealed {
				r.Problems[i].Remedy = advice.AdoptOrSeal
			}
		}
	}
	r.betterRemedies(img, o)
	return r, nil
}

// Breaks reports whether a rule is known to be broken.
func (r *Report) Breaks(rule extents.Rule) bool {
	return slices.ContainsFunc(r.Problems, func(p extents.Problem) bool { return p.Rule == rule })
}

func (r *Report) add(problems ...extents.Problem) { r.Problems = append(r.Problems, problems...) }

func (r *Report) without(rule extents.Rule) {
	r.Problems = slices.DeleteFunc(r.Problems, func(p extents.Problem) bool { return p.Rule == rule })
}

// file reads what needs no look at the content.
func (s Surveyor) file(img *image.Image, path string) (f File, err error) {
	f.Path = path
	if f.Identity, err = img.Identity(); err != nil {
		return f, err
	}
	if f.Facts, err = img.Facts(); err != nil {
		return f, err
	}
	f.ReadOnlyDevice = s.onReadOnlyDevice(f.Facts)
	return f, nil
}

// onReadOnlyDevice reports whether it is known that nobody can write to the device that
// the image's file system is mounted from.
func (s Surveyor) onReadOnlyDevice(f image.Facts) bool {
	if !f.ReadOnly || f.Device.Major == 0 {
		return false
	}
	conn, err := s.Mapper()
	if err != nil {
		return false
	}
	readOnly, err := blockdev.ReadOnly(s.Sysfs, conn, f.Device)
	return err == nil && readOnly
}

// blocks judges who uses the file, what pins it, where it lies and what lies below it. The
// layout is read while nobody else has the file open.
func (s Surveyor) blocks(ctx context.Context, img *image.Image, r *Report, o Options) error {
	claimed, err := claimedByUs(img, r.File, r.Sealing)
	if err != nil {
		return err
	}
	if claimed { // which keeps every other claim from doing harm
		r.without(extents.ActiveSwap)
	} else {
		lease, problems, err := s.soleOpener(ctx, img, r.Path, o)
		if err != nil {
			return err
		}
		if lease != nil {
			// Closing the descriptor gives the lease back as well, so a failure is harmless.
			defer lease.Release() //nolint:errcheck // see above
		}
		r.add(problems...)
	}
	if err := img.File().Sync(); err != nil {
		return err
	}
	layout, problems, err := readTwice(img)
	if errors.Is(err, unix.EOPNOTSUPP) && r.Breaks(extents.Compressed) {
		return nil // ntfs3 tells nothing of where such a file lies
	}
	if err != nil {
		return err
	}
	r.add(problems...)
	if r.Pins, err = pins(img, r.File); err != nil {
		return err
	}
	if p := unpinnable(r.File, r.Sealing, r.Pins); p != nil {
		r.add(*p)
	}
	if r.Sealed && !r.Foreign {
		if r.Exposed = claim.Exposed(r.Facts, s.Gated(r.Facts, o.Gate) == nil); r.Exposed != nil {
			r.add(*r.Exposed)
		}
	}
	if problems, err = s.cache(ctx, img, r.Path, o); err != nil { // after the layout, which takes no time by the file's size
		return err
	}
	r.add(problems...)
	r.Place, problems, err = s.Locate(img, r.File, r.Sealing, layout, o)
	if r.Breaks(extents.MultiDevice) { // which btrfs says once more
		problems = slices.DeleteFunc(problems, func(p extents.Problem) bool { return p.Rule == extents.MultiDevice })
	}
	r.add(problems...)
	return err
}

// claimedByUs reports whether the kernel holds the sealed image as a swap file because
// dmloop said so: that claim does not count as somebody else's.
func claimedByUs(img *image.Image, f File, s Sealing) (bool, error) {
	if !s.Sealed || !f.Facts.Swap.Active {
		return false, nil
	}
	if fstype.Of(f.Facts.Kind()).Bare {
		return true, nil // whoever took it: a claim of the whole of a sealed image does what ours does, and is looked at again
	}
	mark, ok, err := pin.ReadMark(img.File())
	return ok && slices.Contains(mark.Kinds, pin.Swap), err
}

// lookPatience is how long a command that looks only waits for those who have an image
// open: it may look at many images.
const lookPatience = time.Second

// soleOpener takes the write lease as proof that nobody else has the file open. It is nil
// when somebody has, or when the caller may not ask.
func (s Surveyor) soleOpener(ctx context.Context, img *image.Image, path string, o Options) (*image.Lease, []extents.Problem, error) {
	patience := s.Openers
	if o.Look {
		patience = min(lookPatience, patience)
	}
	lease, err := image.AwaitSoleOpener(ctx, img.File(), Waiting(s.Log, path, patience))
	var p *extents.Refusal
	switch {
	case errors.As(err, &p):
		return nil, p.Problems, nil
	case o.Look && errors.Is(err, fs.ErrPermission):
		s.Log.Warn("not checked without root: whether somebody else has the file open", "image", path)
		return nil, nil, nil
	}
	return lease, nil, err
}

// Waiting says how those who have the image at path open are waited for: at most patience,
// and with a word in the log.
func Waiting(log *slog.Logger, path string, patience time.Duration) image.Wait {
	return image.Wait{Patience: patience, Say: func(whom string) {
		log.Warn("waiting for somebody who has the image open", "image", path, "who", whom)
	}}
}

// readTwice is the rule unstable. It returns the second reading.
func readTwice(img *image.Image) (extents.Layout, []extents.Problem, error) {
	first, err := extents.Read(img.File())
	if err != nil {
		return first, nil, err
	}
	same, err := extents.Same(img.File(), first)
	if same || err != nil {
		return first, nil, err
	}
	again, err := extents.Read(img.File())
	if diff := extents.Diff(first, again); diff != "" && err == nil {
		return again, []extents.Problem{Unstable(diff)}, nil
	}
	return again, nil, err
}

// Unstable is the rule of this name: two readings, a moment apart, differ.
func Unstable(diff string) extents.Problem {
	return extents.Problem{
		Rule:    extents.Unstable,
		Message: "two readings of the layout in a row differ: " + diff,
	}
}

// cache drops the file's pages in memory and judges what is left.
func (s Surveyor) cache(ctx context.Context, img *image.Image, path string, o Options) ([]extents.Problem, error) {
	cache, err := img.DropCache(ctx)
	if err != nil {
		return nil, err
	}
	if o.Look && !cache.Exact && os.Geteuid() != 0 {
		s.Log.Warn("not checked without root: whether changed pages of the file are in memory", "image", path)
		return nil, nil
	}
	return cache.Problems(), nil
}

// NewRecord returns what a record keeps of the image: which file it is, its layout and table,
// and what lies below. The host device's uuid is left to the caller, who asks device-mapper.
func (r *Report) NewRecord(img *image.Image, name, uuid string) record.Record {
	id := r.Identity
	var below []record.Below
	for _, b := range r.Stack.Base {
		below = append(below, record.Below{Device: b.Device, Name: b.Name})
	}
	return record.Record{
		Name: name, UUID: uuid,
		Image: record.Image{
			Path: img.Path(), FileID: id.FileID, Size: id.Size, Filesystem: r.Facts.Filesystem, Reflink: r.Facts.Reflink,
			Handle: observe.FileHandle(img), FSUUID: observe.FilesystemUUID(img.File(), r.Facts.Filesystem), Folder: observe.FolderHandle(img),
		},
		Size: r.Length, Sealed: r.Sealed, Extents: len(r.Layout.Extents), Layout: r.Layout, Table: r.Table,
		Base: record.Base{Device: r.Stack.Host, Name: r.Stack.HostName, Table: r.Stack.HostTable.String()}, Below: below,
	}
}
