package dm_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/dm"
	"dmloop/internal/dm/dmtest"
)

var sentinels = []error{dm.ErrNoDeviceMapper, dm.ErrPermission, dm.ErrNotFound, dm.ErrExists, dm.ErrBusy, dm.ErrUnsupported}

// TestErrno lists what each errno means when it comes from each operation.
func TestErrno(t *testing.T) {
	img := dm.ByName("img")
	table := dmtable.ErrorTable(8)
	operations := []struct {
		op   string
		call func(c *dm.Conn) error
		want map[unix.Errno]error // nil is no sentinel
	}{
		{"DM_VERSION", func(c *dm.Conn) error { _, err := c.Version(); return err },
			map[unix.Errno]error{unix.EINVAL: dm.ErrUnsupported, unix.EACCES: dm.ErrPermission}},
		{"DM_DEV_CREATE", func(c *dm.Conn) error { _, err := c.Create("img", "u"); return err },
			map[unix.Errno]error{unix.EBUSY: dm.ErrExists, unix.EINVAL: nil, unix.EPERM: dm.ErrPermission, unix.ENOMEM: nil}},
		{"DM_TABLE_LOAD", func(c *dm.Conn) error { _, err := c.Load(img, table, false); return err },
			map[unix.Errno]error{unix.EBUSY: dm.ErrBusy, unix.EINVAL: nil, unix.EPERM: dm.ErrPermission, unix.EACCES: nil, unix.ENXIO: dm.ErrNotFound, unix.EOVERFLOW: nil, unix.ENODEV: nil}},
		{"DM_DEV_SUSPEND", func(c *dm.Conn) error { _, err := c.Resume(img, dm.ResumeOptions{}); return err },
			map[unix.Errno]error{unix.ENXIO: dm.ErrNotFound, unix.EINVAL: nil, unix.EIO: nil}},
		{"DM_DEV_SUSPEND", func(c *dm.Conn) error { _, err := c.Suspend(img, dm.SuspendOptions{}); return err },
			map[unix.Errno]error{unix.ENXIO: dm.ErrNotFound}},
		{"DM_DEV_REMOVE", func(c *dm.Conn) error { _, err := c.Remove(img, dm.RemoveOptions{}); return err },
			map[unix.Errno]error{unix.EBUSY: dm.ErrBusy, unix.ENXIO: dm.ErrNotFound}},
		{"DM_DEV_RENAME", func(c *dm.Conn) error { _, err := c.Rename(img, "new", 0); return err },
			map[unix.Errno]error{unix.EBUSY: dm.ErrExists, unix.EINVAL: nil, unix.ENXIO: dm.ErrNotFound}},
		{"DM_DEV_STATUS", func(c *dm.Conn) error { _, err := c.Info(img); return err },
			map[unix.Errno]error{unix.ENXIO: dm.ErrNotFound, unix.EACCES: dm.ErrPermission}},
		{"DM_TABLE_CLEAR", func(c *dm.Conn) error { _, err := c.Clear(img); return err },
			map[unix.Errno]error{unix.ENXIO: dm.ErrNotFound}},
		{"DM_TABLE_DEPS", func(c *dm.Conn) error { _, err := c.Deps(img); return err },
			map[unix.Errno]error{unix.ENXIO: dm.ErrNotFound}},
		{"DM_TABLE_STATUS", func(c *dm.Conn) error { _, err := c.Table(img); return err },
			map[unix.Errno]error{unix.ENXIO: dm.ErrNotFound}},
		{"DM_LIST_DEVICES", func(c *dm.Conn) error { _, err := c.List(); return err },
			map[unix.Errno]error{unix.EACCES: dm.ErrPermission, unix.ENOTTY: dm.ErrUnsupported}},
	}
	for _, o := range operations {
		for errno, want := range o.want {
			t.Run(fmt.Sprintf("%s/%s", o.op, unix.ErrnoName(errno)), func(t *testing.T) {
				k := dmtest.New()
				k.FailNth(1, errno)
				err := o.call(k.Conn())
				checkContract(t, err, o.op, errno)
				for _, s := range sentinels {
					if errors.Is(err, s) != (s == want) {
						t.Errorf("%v: Is(%v) is %v", err, s, errors.Is(err, s))
					}
				}
			})
		}
	}
}

// checkContract checks what every error of the package promises.
func checkContract(t *testing.T, err error, op string, errno unix.Errno) {
	t.Helper()
	var e *dm.Error
	if !errors.As(err, &e) || e.Op != op {
		t.Fatalf("got %#v", err)
	}
	if !errors.Is(err, errno) {
		t.Errorf("%v is not %v", err, errno)
	}
	for _, part := range []string{op, e.Name, errno.Error()} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not tell %q", err, part)
		}
	}
	if strings.Contains(err.Error(), "ioctl DM") {
		t.Errorf("%q tells the ioctl twice", err)
	}
}

// TestRefused checks what must not reach the kernel at all.
func TestRefused(t *testing.T) {
	k := dmtest.New()
	c := k.Conn()
	long := strings.Repeat("n", 128)
	for name, call := range map[string]func() error{
		"create long":      func() error { _, err := c.Create(long, ""); return err },
		"create bad":       func() error { _, err := c.Create("a b", ""); return err },
		"create long uuid": func() error { _, err := c.Create("a", long+"u"); return err },
		"rename long":      func() error { _, err := c.Rename(dm.ByName("a"), long, 0); return err },
		"rename slash":     func() error { _, err := c.Rename(dm.ByName("a"), "a/b", 0); return err },
		"info long":        func() error { _, err := c.Info(dm.ByName(long)); return err },
		"info NUL":         func() error { _, err := c.Info(dm.ByUUID("a\x00b")); return err },
		"no device":        func() error { _, err := c.Info(dm.Ref{}); return err },
		"remove none":      func() error { _, err := c.Remove(dm.ByName(""), dm.RemoveOptions{}); return err },
		"empty table":      func() error { _, err := c.Load(dm.ByName("a"), nil, false); return err },
		"gap": func() error {
			_, err := c.Load(dm.ByName("a"), dmtable.Table{{Start: 1, Length: 1, Target: "zero"}}, false)
			return err
		},
	} {
		err := call()
		var e *dm.Error
		if !errors.As(err, &e) || e.Op == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if calls := k.Calls(); len(calls) != 0 {
		t.Errorf("the kernel saw %+v", calls)
	}
}
