package lifecycle

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/dm"
	"dmloop/internal/pin"
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
		"EIO":               {unix.EIO, Failure},
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
		if got := refuse("x", []extents.Problem{{Rule: rule}}).Class; got != want {
			t.Errorf("%s: class %d, want %d", rule, got, want)
		}
		if got := refuse("x", []extents.Problem{{Rule: extents.Hole}, {Rule: rule}}).Class; got != NotMappable {
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

func TestDefaultName(t *testing.T) {
	for path, want := range map[string]string{
		"/srv/image.img": "image", "image": "image", "a.tar.gz": "a.tar", ".hidden": ".hidden", "x/.img": ".img", "dir.d/disk": "disk",
	} {
		if got := DefaultName(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct{ path, name, want string }{
		{"a b.img", "", `a\x20b`}, {"x.img", "disk", "disk"}, {"smørrebrød.img", "", `sm\xc3\xb8rrebr\xc3\xb8d`},
		{"x", strings.Repeat("n", 88), strings.Repeat("n", 88)},
	} {
		got, err := mangled(c.path, c.name)
		if err != nil || got != c.want {
			t.Errorf("%q, %q: %s, %v", c.path, c.name, got, err)
		}
		if uuid, err := newUUID(got, ""); err != nil || dmtable.CheckUUID(uuid) != nil {
			t.Errorf("%q: uuid %s, %v", got, uuid, err)
		}
	}
	for _, name := range []string{"a/b", ".", "..", "control", strings.Repeat("n", 128), strings.Repeat("ø", 20)} {
		if got, err := mangled("x", name); ClassOf(err) != Usage {
			t.Errorf("%q: %s, %v", name, got, err)
		}
	}
	if _, err := newUUID(strings.Repeat("n", 89), ""); ClassOf(err) != Usage {
		t.Errorf("a name of 89 bytes: %v", err)
	}
	if _, err := newUUID("x", "123"); ClassOf(err) != Usage {
		t.Errorf("a short uuid: %v", err)
	}
}

func TestWindow(t *testing.T) {
	for _, c := range []struct {
		w          Window
		size, want extents.Bytes
	}{
		{Window{}, 8192, 8192}, {Window{Offset: 4096}, 8192, 4096}, {Window{Limit: 4096}, 8192, 4096},
		{Window{Offset: 512, Limit: 512}, 8192, 512}, {Window{Offset: 4096, Limit: 1 << 40}, 8192, 4096}, {Window{}, 513, 513}, {Window{}, 0, 0},
	} {
		if got, err := c.w.of("image", c.size); err != nil || got != c.want {
			t.Errorf("%+v of %d: %d, %v", c.w, c.size, got, err)
		}
	}
	for _, w := range []Window{{Offset: -512}, {Limit: -512}, {Offset: 8192}, {Offset: 1 << 62}} {
		if got, err := w.of("image", 8192); ClassOf(err) != Usage || !strings.HasPrefix(err.Error(), "image: ") {
			t.Errorf("%+v: %d, %v", w, got, err)
		}
	}
}

// accept is what stands between a user and an unsafe mapping.
func TestAcceptGrade(t *testing.T) {
	for _, c := range []struct {
		grade           pin.Grade
		noGuard, unsafe bool
		denies          bool
		want            bool
	}{
		{pin.Kernel, false, false, true, true}, {pin.Kernel, false, false, false, true}, {pin.Kernel, true, false, false, true},
		{pin.Guarded, false, false, true, true}, {pin.Guarded, false, false, false, false}, {pin.Guarded, true, false, true, false},
		{pin.Guarded, true, true, false, true}, {pin.Guarded, false, true, false, true},
		{pin.Unsafe, false, false, true, false}, {pin.Unsafe, true, false, false, false}, {pin.Unsafe, true, true, false, true}, {pin.Unsafe, false, true, true, true},
	} {
		o := MapOptions{NoGuard: c.noGuard, Unsafe: c.unsafe}
		err := o.accept("x", c.grade, c.denies)
		if (err == nil) != c.want {
			t.Errorf("%+v: %v", c, err)
		}
		var e *Error
		if err != nil && (!errors.As(err, &e) || e.Class != NotMappable || len(e.Problems) != 1 || e.Problems[0].Rule != extents.Unpinnable || e.Problems[0].Remedy == extents.Remedy{}) {
			t.Errorf("%+v: %+v", c, err)
		}
	}
}
