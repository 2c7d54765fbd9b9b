package claim

import (
	"fmt"
	"slices"
	"strings"

	"dmloop/extents"
	"dmloop/internal/image"
)

// others are the permission bits that let anybody but the owner open or execute a file.
// The group's stand for the whole of an access control list, too.
const others = 0o077

// gateOutlivesUs reports whether opens by others are denied also when no process of
// dmloop runs. No gate does that so far: the guard's (fanotify) ends with the guard.
func gateOutlivesUs() bool { return false }

// Exposed says why an image must not be given to the kernel as swap space, or nil: the
// kernel pages the memory of any process to it, so nobody but root may be able to open
// it, from before swapon until the page is wiped. This is the one place that judges it.
func Exposed(f image.Facts) *extents.Problem {
	if gateOutlivesUs() {
		return nil
	}
	problem := func(message, hint string) *extents.Problem {
		return &extents.Problem{Rule: extents.Unpinnable, Message: message, Hint: hint}
	}
	if slices.Contains(f.Mount.Options, "idmapped") {
		return problem("the mount shows other owners of files than the file system has (idmapped), and the kernel would page memory of any process to the image",
			"map the image through another mount of its file system")
	}
	var run []string
	if f.Owner != 0 {
		run = append(run, "chown root IMAGE")
	}
	if f.Mode&others != 0 {
		run = append(run, "chmod 600 IMAGE")
	}
	if len(run) == 0 {
		return nil
	}
	return problem(fmt.Sprintf("the kernel pages memory of any process to a sealed image, and others than root may open this one (owner %d, mode %04o)", f.Owner, f.Mode),
		"run: "+strings.Join(run, " && "))
}

// exposed is Exposed of the image as it is now.
func (c *Claim) exposed() error {
	facts, err := c.Image.Facts()
	if err != nil {
		return err
	}
	p := Exposed(facts)
	switch {
	case p == nil:
		return nil
	case c.Unsafe:
		c.Log.Warn("unsafe: "+p.Message, "image", c.Image.Path())
		return nil
	}
	return &image.ProblemError{Path: c.Image.Path(), Problem: *p}
}
