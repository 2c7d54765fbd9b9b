package lifecycle

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/internal/advice"
	"dmloop/internal/fault"
	"dmloop/internal/swap"
)

// What the kernel refuses is told in words that say what to do.
func TestClaimErrors(t *testing.T) {
	for _, c := range []struct {
		fail  func(string, error) error
		kind  error
		errno error
		class fault.Class
		words []string // of message and hint
	}{
		{claimError, swap.ErrNoSlot, unix.EPERM, fault.NotMappable, []string{"unpinnable", "no room for another swap file", string(advice.FreeSwapPlace.Way)}},
		{claimError, swap.ErrNoSwap, unix.ENOSYS, fault.KernelLacks, []string{"CONFIG_SWAP"}},
		{claimError, swap.ErrBusy, unix.EBUSY, fault.Busy, []string{"balance", string(advice.WaitForBalance.Way)}},
		{claimError, swap.ErrRefused, unix.EINVAL, fault.NotMappable, []string{"unpinnable", "does not accept the image", string(advice.SeeKernelLog.Way)}},
		{claimError, swap.ErrRecovered, unix.EOPNOTSUPP, fault.NotMappable, []string{"unpinnable", "crash", string(advice.ReadAnew.Way)}},
		{claimError, swap.ErrReadOnlyFS, unix.EROFS, fault.Failed, []string{"read-only"}},
		{releaseError, swap.ErrNoMemory, unix.ENOMEM, fault.Failed, []string{"cannot be read back", string(advice.FreeMemory.Way)}},
		{releaseError, swap.ErrReadOnlyFS, unix.EROFS, fault.Failed, []string{"still holds", string(advice.MakeHostWritable.Way)}},
		{releaseError, swap.ErrImmutable, unix.EPERM, fault.NotPermitted, []string{"immutable"}},
	} {
		err := c.fail("/srv/img", &swap.Error{Op: "swapon", Path: "/srv/img", Kind: c.kind, Errno: c.errno})
		if got := fault.ClassOf(err); got != c.class || !errors.Is(err, c.kind) && c.class != fault.NotMappable {
			t.Errorf("%v: class %v, want %v", err, got, c.class)
		}
		text := err.Error()
		for e := new(fault.Error); errors.As(err, &e); err = e.Err {
			text += string(e.Remedy.Way)
			for _, p := range e.Problems {
				text += p.Message + string(p.Remedy.Way)
			}
		}
		for _, word := range append(c.words, "/srv/img") {
			if !strings.Contains(text, word) {
				t.Errorf("%q lacks %q", text, word)
			}
		}
	}
	if err := claimError("/srv/img", nil); err != nil {
		t.Error(err)
	}
}
