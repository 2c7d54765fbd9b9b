package fault

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/image"
	"dmloop/internal/ioctl"
	"dmloop/internal/swap"
)

// Nobody is told to become what he is: root hears which capability he lacks, or that it
// is none.
func TestPermission(t *testing.T) {
	all := ^uint64(0)
	for name, c := range map[string]struct {
		who  caller
		want extents.Remedy
	}{
		"a user":                       {caller{euid: 1000}, advice.Sudo},
		"root":                         {caller{effective: all}, advice.SeeSecurityModule.Of("CAP_SYS_ADMIN")},
		"root without it":              {caller{effective: all &^ (1 << 21)}, advice.AddCapability.Of("CAP_SYS_ADMIN")},
		"a user with it":               {caller{euid: 1000, effective: 1 << 21}, advice.SeeSecurityModule.Of("CAP_SYS_ADMIN")},
		"root of a user namespace":     {caller{effective: all, nested: true}, advice.LeaveNamespace},
		"a user in a user namespace":   {caller{euid: 1000, nested: true}, advice.LeaveNamespace},
		"root that lacks another one ": {caller{effective: all &^ (1 << 9)}, advice.SeeSecurityModule.Of("CAP_SYS_ADMIN")},
	} {
		if got := c.who.remedy(CapAdmin); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// A call that was not permitted tells what it takes, however deep its error lies.
func TestRemedyForCalls(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"lease": {fmt.Errorf("%w: %w", image.ErrCannotProve, unix.EACCES), "CAP_LEASE"},
		"flags": {fmt.Errorf("pin: %w", &ioctl.Error{Request: "FS_IOC_SETFLAGS", Err: unix.EPERM}), "CAP_LINUX_IMMUTABLE"},
		"xattr": {&ioctl.Error{Request: "FS_IOC_FSSETXATTR", Err: unix.EPERM}, "CAP_LINUX_IMMUTABLE"},
		"block": {fmt.Errorf("x: %w", &ioctl.Error{Request: "FIBMAP", Err: unix.EPERM}), "CAP_SYS_RAWIO"},
		"swap":  {&swap.Error{Op: "swapon", Errno: unix.EPERM}, "CAP_SYS_ADMIN"},
		"dm":    {&dm.Error{Op: "DM_DEV_CREATE", Err: unix.EACCES}, "CAP_SYS_ADMIN"},
		"other": {&ioctl.Error{Request: "FS_IOC_SETFLAGS", Err: unix.EIO}, ""},
		"read":  {&ioctl.Error{Request: "FS_IOC_GETFLAGS", Err: unix.EPERM}, ""},
	} {
		if got := remedyFor(c.err); (got == extents.Remedy{}) != (c.want == "") || c.want != "" && got != Permission(map[string]Capability{
			"CAP_LEASE": CapLease, "CAP_LINUX_IMMUTABLE": CapImmutable, "CAP_SYS_ADMIN": CapAdmin, "CAP_SYS_RAWIO": CapRawIO}[c.want]) {
			t.Errorf("%s: %v, want one about %s", name, got, c.want)
		}
		if got := remedyFor(fmt.Errorf("open: %w", unix.EROFS)); got != advice.MakeWritable {
			t.Errorf("read-only: %v", got)
		}
		var e *Error
		if err := Wrap("x", "", c.err); ClassOf(err) == NotPermitted && c.want != "" {
			if e, _ = err.(*Error); e == nil || e.Remedy == (extents.Remedy{}) {
				t.Errorf("%s: no hint in %v", name, err)
			}
		}
	}
}
