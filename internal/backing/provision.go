package backing

import (
	"context"
	"errors"
	"fmt"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

// Report is what a repair did, in bytes of the file by the reason for it.
type Report struct {
	Holes     extents.Bytes `json:"holes"`     // given blocks and zeroed
	Unwritten extents.Bytes `json:"unwritten"` // zeroed
	Shared    extents.Bytes `json:"shared"`    // given blocks of their own
	Encoded   extents.Bytes `json:"encoded"`   // written again, uncompressed
	Written   extents.Bytes `json:"written"`   // written over with itself, where nothing tells what was written
	Rounds    int           `json:"rounds"`    // 0 when there was nothing to do
}

func (r *Report) add(o Report) {
	r.Holes += o.Holes
	r.Unwritten += o.Unwritten
	r.Shared += o.Shared
	r.Encoded += o.Encoded
	r.Written += o.Written
}

// Provision makes the file that was found mappable as far as writing to it can: holes and
// unwritten
// extents become zeros on the disk, shared and compressed ones get plain blocks of
// their own. Its content, size and name stay what they are, and whenever the work is
// cut off, by the context, a signal or a power failure, the file still reads the same;
// the next call goes on.
//
// It holds a write lease all the time and stops with a *extents.Refusal of the rule
// open-elsewhere as soon as anybody else wants to open the file. Further errors:
// *NoSpaceError, checked beforehand; *extents.Refusal for what cannot be repaired,
// checked before anything is written where that can be known; ErrImmutable; those of
// image.Found.Open and image.AwaitSoleOpener.
func Provision(ctx context.Context, found *image.Found, opts Options) (report Report, err error) {
	path := found.Given()
	img, err := openForWriting(found)
	if err != nil {
		return Report{}, err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	facts, err := img.Facts()
	if err != nil {
		return Report{}, err
	}
	if problems := hopeless(facts, facts.Size, extents.Compressed); len(problems) > 0 {
		return Report{}, extents.Refuse(path, problems...)
	}
	if opts.Allow != nil {
		if err := opts.Allow(img); err != nil {
			return Report{}, err
		}
	}
	lease, err := image.AwaitSoleOpener(ctx, img.File(), opts.Wait)
	if err != nil {
		return Report{}, err
	}
	defer func() { err = errors.Join(err, lease.Release()) }()
	fs := fstype.Of(facts.Kind())
	if err := inode.ChangeFlags(img.File(), 0, inode.Compress); err != nil && !errors.Is(err, unix.EINVAL) && !fs.Bare {
		return Report{}, fmt.Errorf("%s: %w", path, err) // EINVAL: f2fs does not let go of a file that has blocks; verify reports it
	}
	if facts.Pin.Pinned {
		return Report{}, verifyPinned(img, path)
	}
	r := repairer{
		file: img.File(), path: path, guard: leaseGuard(lease, path), meter: &meter{show: opts.Progress},
		mode: writeMode{buffered: fs.BufferedFill},
	}
	report, err = r.run(ctx)
	if err != nil {
		return report, err
	}
	if fs.Unproven {
		if err := r.writeAll(ctx, facts.Size); err != nil {
			return report, err
		}
		report.Written, report.Rounds = facts.Size, report.Rounds+1
	}
	return report, verify(img, path)
}

// openForWriting opens a file that was found for reading and writing, waiting for nobody.
func openForWriting(found *image.Found) (*image.Image, error) {
	reader, err := found.Open()
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	facts, err := reader.Facts()
	if err != nil {
		return nil, err
	}
	if facts.Immutable() {
		return nil, fmt.Errorf("%s: %w", found.Given(), ErrImmutable)
	}
	rw, err := reader.OpenForWriting()
	if err != nil {
		return nil, err
	}
	return image.Adopt(rw)
}

// leaseGuard returns a question that is an error once the write lease is no
// longer whole: somebody waits to open the file, or the kernel has let it in.
func leaseGuard(lease *image.Lease, path string) func() error {
	return func() error {
		if whole, err := lease.Whole(); whole || err != nil {
			return err
		}
		return extents.Refuse(path, extents.Problem{
			Rule:    extents.OpenElsewhere,
			Message: "somebody opened the file while it was being provisioned, so the work stopped there; the content is unharmed",
			Remedy:  advice.CloseAndProvision,
		})
	}
}

// verify reads the finished file afresh and returns a *extents.Refusal when a rule is
// still broken that this package answers for.
func verify(img *image.Image, path string) error {
	facts, err := img.Facts()
	if err != nil {
		return err
	}
	layout, err := extents.Read(img.File())
	if err != nil {
		return err
	}
	problems := append(hopeless(facts, layout.Size), layout.Problems(facts.BlockSize, 0)...)
	if len(problems) > 0 {
		return extents.Refuse(path, problems...)
	}
	return nil
}

// verifyPinned is verify for a pinned file on f2fs, which is not repaired: new blocks
// of such a file have anything in them until they are written, so a hole that reads
// as zeros cannot be filled without a moment in which it does not.
func verifyPinned(img *image.Image, path string) error {
	err := verify(img, path)
	var broken *extents.Refusal
	if errors.As(err, &broken) {
		for i := range broken.Problems {
			broken.Problems[i].Remedy = advice.UnpinF2FS
		}
	}
	return err
}
