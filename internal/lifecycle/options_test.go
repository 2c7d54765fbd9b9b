package lifecycle

import (
	"errors"
	"strings"
	"testing"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/fault"
	"dmloop/internal/pin"
)

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
		if got, err := mangled("x", name); fault.ClassOf(err) != fault.Usage {
			t.Errorf("%q: %s, %v", name, got, err)
		}
	}
	if _, err := newUUID(strings.Repeat("n", 89), ""); fault.ClassOf(err) != fault.Usage {
		t.Errorf("a name of 89 bytes: %v", err)
	}
	if _, err := newUUID("x", "123"); fault.ClassOf(err) != fault.Usage {
		t.Errorf("a short uuid: %v", err)
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
		var e *fault.Error
		if err != nil && (!errors.As(err, &e) || e.Class != fault.NotMappable || len(e.Problems) != 1 || e.Problems[0].Rule != extents.Unpinnable || e.Problems[0].Remedy == extents.Remedy{}) {
			t.Errorf("%+v: %+v", c, err)
		}
	}
}
