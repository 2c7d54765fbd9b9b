package claim

import (
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/image"
)

func TestExposed(t *testing.T) {
	for _, c := range []struct {
		owner, mode uint32
		options     string
		to          extents.Remedy // zero: nothing is wrong
	}{
		{0, 0o600, "rw", extents.Remedy{}},
		{0, 0o400, "rw", extents.Remedy{}},
		{0, 0o700, "rw", extents.Remedy{}},
		{0, 0o4600, "rw", extents.Remedy{}},
		{0, 0, "rw", extents.Remedy{}},
		{0, 0o640, "rw", advice.Chmod600},
		{0, 0o620, "rw", advice.Chmod600},
		{0, 0o610, "rw", advice.Chmod600}, // execve(2) opens it, too
		{0, 0o604, "rw", advice.Chmod600},
		{0, 0o602, "rw", advice.Chmod600},
		{0, 0o644, "rw", advice.Chmod600},
		{1000, 0o600, "rw", advice.ChownRoot},
		{65534, 0o600, "rw", advice.ChownRoot},
		{1000, 0o644, "rw", advice.RootsAlone},
		{0, 0o600, "rw,relatime,idmapped", advice.OtherMount},
	} {
		facts := image.Facts{Owner: c.owner, Mode: c.mode, Mount: image.Mount{Options: strings.Split(c.options, ",")}}
		if p := Exposed(facts, true); p != nil {
			t.Errorf("owner %d, mode %04o, %s, and a gate that outlives us: %v", c.owner, c.mode, c.options, p)
		}
		p := Exposed(facts, false)
		switch {
		case p == nil && c.to == (extents.Remedy{}):
		case p == nil || p.Rule != extents.Unpinnable || p.Remedy != c.to:
			t.Errorf("owner %d, mode %04o, %s: %v", c.owner, c.mode, c.options, p)
		}
	}
}
