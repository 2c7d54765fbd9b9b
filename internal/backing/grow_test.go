package backing

import (
	"testing"

	"dmloop/extents"
)

func TestReserved(t *testing.T) {
	tail := stretch{8192, 8192}
	for name, test := range map[string]struct {
		rows []extents.Extent
		want extents.Bytes
	}{
		"nothing":                     {nil, 0},
		"up to the end":               {[]extents.Extent{{Length: 8192}}, 0},
		"one row over the end":        {[]extents.Extent{{Length: 12288}}, 4096},
		"all of it, and more":         {[]extents.Extent{{Length: 8192}, {Logical: 8192, Length: 1 << 20}}, 8192},
		"with a gap":                  {[]extents.Extent{{Length: 8192}, {Logical: 12288, Length: 4096}}, 4096},
		"behind what is to be filled": {[]extents.Extent{{Length: 8192}, {Logical: 1 << 20, Length: 4096}}, 0},
	} {
		if got := reserved(extents.Layout{Size: 8192, Extents: test.rows}, tail); got != test.want {
			t.Errorf("%s: %d", name, got)
		}
	}
}
