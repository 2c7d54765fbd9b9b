package lifecycle

import (
	"testing"

	"dmloop/internal/pin"
)

// A pin of ours that is gone at the first look was cleared; one that was not wanted, or
// that is somebody else's, says nothing.
func TestClearedSince(t *testing.T) {
	both := []pin.Kind{pin.NoDefrag, pin.Immutable}
	for _, c := range []struct {
		wanted, ours, inForce []pin.Kind
		want                  pin.Kind
	}{
		{both, both, both, ""},
		{both, both, []pin.Kind{pin.NoDefrag}, pin.Immutable},
		{both, both, nil, pin.NoDefrag},
		{both, nil, nil, ""},
		{nil, both, nil, ""},
		{[]pin.Kind{pin.Immutable}, []pin.Kind{pin.Swap, pin.Immutable}, []pin.Kind{pin.Immutable}, ""},
	} {
		if k, lost := clearedSince(c.wanted, c.ours, c.inForce); k != c.want || lost != (c.want != "") {
			t.Errorf("%v of %v, now %v: %q, want %q", c.wanted, c.ours, c.inForce, k, c.want)
		}
	}
}
