package survey

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dmloop/internal/image"
	"dmloop/internal/pin"
)

// The kernel is asked whether it can deny opens only where the grade depends on that. What
// it does not tell is no refusal, and is said.
func TestLacksGate(t *testing.T) {
	for _, c := range []struct {
		name    string
		facts   image.Facts
		sealed  bool
		denies  bool
		err     error
		want    bool
		asked   bool
		told    string
		without bool // the pins that --pin=immutable asks for, of a sealed image
	}{
		{name: "ext4", facts: image.Facts{Filesystem: "ext4"}},
		{name: "xfs without reflink", facts: image.Facts{Filesystem: "xfs"}},
		{name: "btrfs", facts: image.Facts{Filesystem: "btrfs"}},
		{name: "another one", facts: image.Facts{Filesystem: "tmpfs"}},
		{name: "xfs", facts: image.Facts{Filesystem: "xfs", Reflink: true}, asked: true, want: true},
		{name: "f2fs", facts: image.Facts{Filesystem: "f2fs"}, asked: true, want: true},
		{name: "xfs, and the kernel can", facts: image.Facts{Filesystem: "xfs", Reflink: true}, denies: true, asked: true},
		{name: "sealed on xfs", facts: image.Facts{Filesystem: "xfs", Reflink: true}, sealed: true},
		{name: "sealed on f2fs", facts: image.Facts{Filesystem: "f2fs"}, sealed: true},
		{name: "sealed on xfs, --pin=immutable", facts: image.Facts{Filesystem: "xfs", Reflink: true}, sealed: true, without: true, asked: true, want: true},
		{name: "not root", facts: image.Facts{Filesystem: "f2fs"}, err: fmt.Errorf("fanotify_init: %w", unix.EPERM), asked: true,
			told: "not checked without root: whether this kernel can deny opens"},
		{name: "too many groups", facts: image.Facts{Filesystem: "f2fs"}, err: errors.New("EMFILE"), asked: true, told: "not checked: whether this kernel can deny opens"},
	} {
		log, asked := &strings.Builder{}, false
		s := Surveyor{Log: slog.New(slog.NewTextHandler(log, nil)), KernelDenies: func() (bool, error) { asked = true; return c.denies, c.err }}
		got := s.LacksGate(File{Path: "image", Facts: c.facts}, pin.Wanted(c.facts.Filesystem, c.sealed && !c.without), "")
		if got != c.want || asked != c.asked || (log.Len() > 0) != (c.told != "") || !strings.Contains(log.String(), c.told) {
			t.Errorf("%s: %v, asked %v, told %q", c.name, got, asked, log)
		}
	}
}
