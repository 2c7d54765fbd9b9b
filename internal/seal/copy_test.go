package seal

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// A process killed between two operations leaves the file as it then was; a copy
// of it without the attribute is recovered by what is in the file alone.
func TestCopyWithoutAttribute(t *testing.T) {
	for _, shape := range shapes {
		for _, start := range []string{"seal", "unseal"} {
			want := image(shape.size, 7)
			begin := newCutStore(want)
			begin.base, begin.runs = shape.base, shape.runs
			if start == "unseal" {
				want = sealAndUse(t, begin)
			}
			r := rand.New(rand.NewPCG(3, 4))
			for n := 0; ; n++ {
				s := begin.clone()
				s.cutAt = n
				if err := run(s, start); err == nil {
					break
				}
				s.nowAt = nil
				s = s.clone()
				recoverBoth(t, s, want, fmt.Sprintf("%s: copy of %s cut at %d", shape.name, start, n), r)
				if start == "unseal" {
					continue
				}
				// The same with page 0 torn in the middle, which it cannot be
				// any more when the trailer says that the image is sealed.
				last, _ := Decode(s.now[max(0, len(s.now)-sectorSize):])
				if st, _ := inspect(s, testPage); (st.Kind == Sealed || st.moved) && last.Phase == PhaseSealing {
					for sectors := range 8 {
						torn := s.clone()
						end := min(testPage, len(want))
						copy(torn.now[min(sectors*sectorSize, end):end], want[min(sectors*sectorSize, end):])
						torn.disk = bytes.Clone(torn.now)
						recoverBoth(t, torn, want, fmt.Sprintf("%s: torn copy of %s cut at %d", shape.name, start, n), r)
					}
				}
			}
		}
	}
}
