package survey

import (
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/fault"
)

func TestWindow(t *testing.T) {
	for _, c := range []struct {
		w          Window
		size, want extents.Bytes
	}{
		{Window{}, 8192, 8192}, {Window{Offset: 4096}, 8192, 4096}, {Window{Limit: 4096}, 8192, 4096},
		{Window{Offset: 512, Limit: 512}, 8192, 512}, {Window{Offset: 4096, Limit: 1 << 40}, 8192, 4096}, {Window{}, 513, 513}, {Window{}, 0, 0},
	} {
		if got, err := c.w.Of("image", c.size); err != nil || got != c.want {
			t.Errorf("%+v of %d: %d, %v", c.w, c.size, got, err)
		}
	}
	for _, w := range []Window{{Offset: -512}, {Limit: -512}, {Offset: 8192}, {Offset: 1 << 62}} {
		if got, err := w.Of("image", 8192); fault.ClassOf(err) != fault.Usage || !strings.HasPrefix(err.Error(), "image: ") {
			t.Errorf("%+v: %d, %v", w, got, err)
		}
	}
}
