package fault

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/internal/dm"
	"dmloop/internal/record"
)

func TestClassOf(t *testing.T) {
	path := func(e unix.Errno) error { return &fs.PathError{Op: "open", Path: "x", Err: e} }
	for name, c := range map[string]struct {
		err  error
		want Class
	}{
		"ENOENT":            {path(unix.ENOENT), NotFound},
		"EPERM":             {path(unix.EPERM), NotPermitted},
		"EEXIST":            {path(unix.EEXIST), Busy},
		"EBUSY":             {unix.EBUSY, Busy},
		"EIO":               {unix.EIO, Failed},
		"no device-mapper":  {dm.ErrNoDeviceMapper, KernelLacks},
		"dm not permitted":  {&dm.Error{Op: "DM_DEV_CREATE", Err: unix.EACCES}, NotPermitted},
		"no mapping":        {fmt.Errorf("x: %w", record.ErrNotFound), NotFound},
		"classed wins":      {&Error{Class: StaleMapping, Err: path(unix.ENOENT)}, StaleMapping},
		"the outermost one": {&Error{Class: Busy, Err: &Error{Class: Usage}}, Busy},
		"first of joined":   {errors.Join(&Error{Class: Usage}, &Error{Class: Busy}), Usage},
	} {
		if got := ClassOf(c.err); got != c.want {
			t.Errorf("%s: class %d, want %d", name, got, c.want)
		}
	}
}

// Only what passes by itself is "busy"; every other rule makes the image not mappable.
func TestRefuseClasses(t *testing.T) {
	for rule, want := range map[extents.Rule]Class{
		extents.OpenElsewhere: Busy, extents.ActiveSwap: Busy, extents.Overlap: Busy,
		extents.Hole: NotMappable, extents.DirtyCache: NotMappable, extents.Unpinnable: NotMappable, extents.NotRegular: NotMappable,
	} {
		if got := Refuse("x", []extents.Problem{{Rule: rule}}).Class; got != want {
			t.Errorf("%s: class %d, want %d", rule, got, want)
		}
		if got := Refuse("x", []extents.Problem{{Rule: extents.Hole}, {Rule: rule}}).Class; got != NotMappable {
			t.Errorf("hole and %s: class %d", rule, got)
		}
	}
}

func TestErrorText(t *testing.T) {
	hole := extents.Problem{Rule: extents.Hole, Message: "a hole"}
	for want, e := range map[string]*Error{
		"s: m":                             {Subject: "s", Message: "m"},
		"m":                                {Message: "m"},
		"s: m: cause":                      {Subject: "s", Message: "m", Err: errors.New("cause")},
		"s: cause":                         {Subject: "s", Err: errors.New("cause")},
		"s: a hole (hole)":                 {Subject: "s", Problems: []extents.Problem{hole}},
		"s: a hole (hole)" + " and 2 more": {Subject: "s", Problems: []extents.Problem{hole, hole, hole}},
	} {
		if got := e.Error(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
