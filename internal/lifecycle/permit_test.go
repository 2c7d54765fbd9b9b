package lifecycle

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/internal/dm"
	"dmloop/internal/image"
	"dmloop/internal/ioctl"
	"dmloop/internal/swap"
)

// Nobody is told to become what he is: root hears which capability he lacks, or that it
// is none.
func TestPermissionHint(t *testing.T) {
	all := ^uint64(0)
	for name, c := range map[string]struct {
		who  caller
		want string
	}{
		"a user":                       {caller{euid: 1000}, "run the command with sudo"},
		"root":                         {caller{effective: all}, "not for lack of CAP_SYS_ADMIN: "},
		"root without it":              {caller{effective: all &^ (1 << 21)}, "this root lacks the capability CAP_SYS_ADMIN, "},
		"a user with it":               {caller{euid: 1000, effective: 1 << 21}, "not for lack of CAP_SYS_ADMIN: "},
		"root of a user namespace":     {caller{effective: all, nested: true}, "is not root of the machine"},
		"a user in a user namespace":   {caller{euid: 1000, nested: true}, "is not root of the machine"},
		"root that lacks another one ": {caller{effective: all &^ (1 << 9)}, "not for lack of CAP_SYS_ADMIN: "},
	} {
		got := c.who.hint(CapAdmin)
		if !strings.Contains(got, c.want) || strings.Contains(got, "sudo") != (name == "a user") {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// A call that was not permitted tells what it takes, however deep its error lies.
func TestHintForCalls(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"lease": {fmt.Errorf("%w: %w", image.ErrCannotProve, unix.EACCES), "CAP_LEASE"},
		"flags": {fmt.Errorf("pin: %w", &ioctl.Error{Request: "FS_IOC_SETFLAGS", Err: unix.EPERM}), "CAP_LINUX_IMMUTABLE"},
		"xattr": {&ioctl.Error{Request: "FS_IOC_FSSETXATTR", Err: unix.EPERM}, "CAP_LINUX_IMMUTABLE"},
		"swap":  {&swap.Error{Op: "swapon", Errno: unix.EPERM}, "CAP_SYS_ADMIN"},
		"dm":    {&dm.Error{Op: "DM_DEV_CREATE", Err: unix.EACCES}, "CAP_SYS_ADMIN"},
		"other": {&ioctl.Error{Request: "FS_IOC_SETFLAGS", Err: unix.EIO}, ""},
		"read":  {&ioctl.Error{Request: "FS_IOC_GETFLAGS", Err: unix.EPERM}, ""},
	} {
		if got := hintFor(c.err); (got == "") != (c.want == "") || c.want != "" && got != PermissionHint(map[string]Capability{
			"CAP_LEASE": CapLease, "CAP_LINUX_IMMUTABLE": CapImmutable, "CAP_SYS_ADMIN": CapAdmin}[c.want]) {
			t.Errorf("%s: %q, want one about %s", name, got, c.want)
		}
		if got := hintFor(fmt.Errorf("open: %w", unix.EROFS)); !strings.Contains(got, "remount,rw") {
			t.Errorf("read-only: %q", got)
		}
		var e *Error
		if err := fail("x", "", c.err); ClassOf(err) == NotPermitted && c.want != "" {
			if e, _ = err.(*Error); e == nil || e.Hint == "" { //nolint:errorlint // it was made here
				t.Errorf("%s: no hint in %v", name, err)
			}
		}
	}
}
