package claim

import (
	"strings"
	"testing"

	"dmloop/extents"
	"dmloop/internal/image"
)

func TestExposed(t *testing.T) {
	for _, c := range []struct {
		owner, mode uint32
		options     string
		hint        string // empty: nothing is wrong
	}{
		{0, 0o600, "rw", ""},
		{0, 0o400, "rw", ""},
		{0, 0o700, "rw", ""},
		{0, 0o4600, "rw", ""},
		{0, 0, "rw", ""},
		{0, 0o640, "rw", "run: chmod 600 IMAGE"},
		{0, 0o620, "rw", "run: chmod 600 IMAGE"},
		{0, 0o610, "rw", "run: chmod 600 IMAGE"}, // execve(2) opens it, too
		{0, 0o604, "rw", "run: chmod 600 IMAGE"},
		{0, 0o602, "rw", "run: chmod 600 IMAGE"},
		{0, 0o644, "rw", "run: chmod 600 IMAGE"},
		{1000, 0o600, "rw", "run: chown root IMAGE"},
		{65534, 0o600, "rw", "run: chown root IMAGE"},
		{1000, 0o644, "rw", "run: chown root IMAGE && chmod 600 IMAGE"},
		{0, 0o600, "rw,relatime,idmapped", "map the image through another mount of its file system"},
	} {
		p := Exposed(image.Facts{Owner: c.owner, Mode: c.mode, Mount: image.Mount{Options: strings.Split(c.options, ",")}})
		switch {
		case p == nil && c.hint == "":
		case p == nil || p.Rule != extents.Unpinnable || p.Hint != c.hint:
			t.Errorf("owner %d, mode %04o, %s: %v", c.owner, c.mode, c.options, p)
		}
	}
}
