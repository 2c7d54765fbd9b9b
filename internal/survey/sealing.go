package survey

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/fault"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
	"dmloop/internal/pin"
	"dmloop/internal/seal"
)

// sealing reports whether the image is sealed, and judges its record. Beside the
// attribute it takes two words for it: the caller's, and that of dmloop's own pin, which
// names the claim, while the kernel holds the image: nobody writes to it then. A mark that
// a forgotten mapping or a power cut left says nothing about what is in the image by now.
func (s Surveyor) sealing(img *image.Image, f File, o Options) (Sealing, []extents.Problem, error) {
	found := Sealing{Content: f.Identity.Size}
	mark, _, err := pin.ReadMark(img.File())
	if err != nil {
		return found, nil, err
	}
	said := o.AsSealed || slices.Contains(mark.Kinds, pin.Swap) && f.Facts.Swap.Active
	blind := o.Look && os.Geteuid() != 0
	st, err := seal.Inspect(img.File(), said || blind)
	if err != nil {
		return found, nil, err
	}
	if blind && st.Kind != seal.Plain {
		s.Log.Warn("not checked without root: whether the image is marked as sealed; it looks so", "image", f.Path)
	}
	content := io.ReaderAt(ends{st})
	var problems []extents.Problem
	switch st.Kind {
	case seal.Plain:
		found.looks = st.Looks != ""
		if found.looks && o.Unattended {
			problems = append(problems, extents.Problem{Rule: extents.Unsealed, Message: "only its content says that it is sealed (" + st.Looks + "): it may be a copy that lost its attribute, and an fsck of the device would write over its first page"})
		} else {
			NoteLooks(s.Log, f.Path, f.Facts, st)
		}
		if o.AsSealed {
			problems = append(problems, extents.Problem{Rule: extents.Unsealed, Message: "--pin=swap needs a sealed image", Remedy: advice.Seal})
		}
	case seal.Sealed:
		content = seal.ReaderOf(img.File(), st.Record)
		found.Sealed, found.Record, found.Content = true, st.Record, st.Record.Payload
	default:
		if p, bad := st.Problem(); bad {
			problems = append(problems, p)
		}
	}
	found.Format = FormatOf(content, found.Content).at(f.Path, found.Content, f.Facts.BlockSize)
	if st.Kind == seal.Plain || st.Kind == seal.Sealed {
		problems = append(problems, unproven(f, found, o)...)
	}
	return found, problems, nil
}

// ends reads what is known of the beginning and the end of a file.
type ends struct{ seal.State }

// ReadAt implements io.ReaderAt. What is not known ends early.
func (e ends) ReadAt(p []byte, off int64) (n int, err error) {
	tail := int64(e.Size) - int64(len(e.Tail))
	switch {
	case off >= 0 && off < int64(len(e.Head)):
		n = copy(p, e.Head[off:])
	case off >= tail && off < int64(e.Size):
		n = copy(p, e.Tail[off-tail:])
	}
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}

// unproven returns what breaks the rules of a file system that takes sealed images only, and
// on which the layout does not show what was written. btrfs has rules of its own.
func unproven(f File, s Sealing, o Options) (problems []extents.Problem) {
	fs := fstype.Of(f.Facts.Kind())
	if fs.Bare && !s.Sealed && !o.AsSealed {
		remedy := advice.Seal
		if s.looks {
			remedy = advice.SayPinSwap
		}
		problems = append(problems, extents.Problem{Rule: extents.Unsealed, Remedy: remedy,
			Message: fmt.Sprintf("on %s nothing but the kernel's hold on a swap file keeps blocks in place, so the image has to be sealed, and said to be (--pin=swap)", fs.Name)})
	}
	if fs.Unproven && !s.Record.Written {
		remedy := advice.Seal
		if s.Sealed {
			remedy = advice.SealSaid
		} else if s.looks {
			remedy = advice.SayPinSwap
		}
		problems = append(problems, extents.Problem{Rule: extents.Unproven, Remedy: remedy,
			Message: fmt.Sprintf("%s lists blocks that were never written as if they were, and no seal says that dmloop wrote every byte of the file", fs.Name)})
	}
	return problems
}

// NoteLooks says of an image that is taken as it is that it looks sealed.
func NoteLooks(log *slog.Logger, path string, f image.Facts, st seal.State) {
	if st.Looks == "" {
		return
	}
	remedy := advice.AdoptCopy
	if fstype.Of(f.Kind()).Bare {
		remedy = advice.SayPinSwap
	}
	log.Log(context.Background(), fault.LevelNote, fmt.Sprintf("only the image's content says that it is sealed (%s), so all of it is treated as content",
		st.Looks), "image", path, "hint", fault.HowTo{Image: path, Remedy: remedy})
}
