package lifecycle

import (
	"math"
	"testing"

	"dmloop/extents"
	"dmloop/internal/fault"
)

func TestGrowSize(t *testing.T) {
	for _, test := range []struct {
		o         GrowOptions
		old, want extents.Bytes // want 0: refused
	}{
		{GrowOptions{Size: 8192}, 4096, 8192},
		{GrowOptions{Size: 4096}, 4096, 4096},
		{GrowOptions{Size: 4095}, 4096, 0},
		{GrowOptions{Size: 0}, 4096, 0},
		{GrowOptions{Size: 4096, More: true}, 4096, 8192},
		{GrowOptions{Size: 0, More: true}, 4096, 4096},
		{GrowOptions{Size: math.MaxInt64 - 4095, More: true}, 4096, 0},
	} {
		got, err := test.o.of("image", test.old)
		if got != test.want || (err != nil) != (test.want == 0) {
			t.Errorf("%+v of %d bytes: %d, %v", test.o, test.old, got, err)
		}
		if err != nil && fault.ClassOf(err) != fault.Usage {
			t.Errorf("%+v: class %d", test.o, fault.ClassOf(err))
		}
	}
}
