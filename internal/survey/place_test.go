package survey

import (
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/image"
)

// Where the devices below write in larger blocks than the file system, those count.
func TestLargerBlocks(t *testing.T) {
	for _, c := range []struct {
		size, block, device extents.Bytes
		window              Window
		problems            int
		from, length        extents.Bytes
	}{
		{8192, 4096, 512, Window{}, 0, 0, 8192},
		{8192, 1024, 4096, Window{}, 0, 0, 8192},
		{5120, 1024, 4096, Window{}, 1, 0, 4096},
		{5120, 1024, 512, Window{}, 0, 0, 5120},
		{16384, 1024, 4096, Window{Offset: 1024}, 1, 4096, 12288},
		{16384, 1024, 4096, Window{Offset: 1024, Limit: 4096}, 1, 4096, 0},
		{16384, 1024, 4096, Window{Offset: 4096, Limit: 5120}, 1, 4096, 4096},
		{65536, 65536, 4096, Window{}, 0, 0, 65536},
	} {
		f := File{Path: "image", Facts: image.Facts{BlockSize: c.block, Size: c.size}}
		s := Sealing{Content: c.size}
		problems, err := largerBlocks(f, s, c.device, c.window)
		if err != nil || len(problems) != c.problems {
			t.Errorf("%+v: %v, %v", c, problems, err)
		}
		for _, p := range problems {
			if p.Rule != extents.SizeUnaligned || !strings.Contains(p.Message, "the device's block of 4096 bytes") {
				t.Errorf("%+v: %v", c, p)
			}
		}
		if from, length, err := wholeBlocks(f, s, c.device, c.window); from != c.from || length != c.length || err != nil {
			t.Errorf("%+v: %d bytes from %d, %v", c, length, from, err)
		}
	}
}
