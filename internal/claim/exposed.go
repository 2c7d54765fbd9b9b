package claim

import (
	"fmt"
	"slices"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
)

// others are the permission bits that let anybody but the owner open or execute a file.
// The group's stand for the whole of an access control list, too.
const others = 0o077

// Exposed says why an image must not be given to the kernel as swap space, or nil: the
// kernel pages the memory of any process to it, so only root may be able to open
// it, from before swapon until the page is wiped. Gated says that opens by others are denied
// all that time, even when no dmloop process runs. The guard's gate (fanotify) ends with the
// guard. This is the one place that judges it.
func Exposed(f image.Facts, gated bool) *extents.Problem {
	if gated {
		return nil
	}
	problem := func(message string, remedy extents.Remedy) *extents.Problem {
		return &extents.Problem{Rule: extents.Unpinnable, Message: message, Remedy: remedy}
	}
	if slices.Contains(f.Mount.Options, "idmapped") {
		return problem("the mount shows other owners of files than the file system has (idmapped), and the kernel would page memory of any process to the image",
			advice.OtherMount)
	}
	remedy := advice.RootsAlone
	switch strangers, open := f.Owner != 0, f.Mode&others != 0; {
	case !strangers && !open:
		return nil
	case fstype.Of(f.Kind()).MountMode:
		remedy = advice.MountForRoot.Of(f.Mount.Point)
	case !open:
		remedy = advice.ChownRoot
	case !strangers:
		remedy = advice.Chmod600
	}
	return problem(fmt.Sprintf("the kernel pages memory of any process to a sealed image, and users other than root may open this one (owner %d, mode %04o)", f.Owner, f.Mode),
		remedy)
}

// exposed is Exposed of the image as it is now.
func (c *Claim) exposed() error {
	facts, err := c.Image.Facts()
	if err != nil {
		return err
	}
	p := Exposed(facts, c.Gated)
	switch {
	case p == nil:
		return nil
	case c.Unsafe:
		c.Log.Warn("unsafe: "+p.Message, "image", c.Image.Path())
		return nil
	}
	return extents.Refuse(c.Image.Path(), *p)
}
