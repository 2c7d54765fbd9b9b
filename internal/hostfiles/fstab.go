package hostfiles

import (
	"path"
	"strings"
)

// Mount is a line of fstab.
type Mount struct{ Source, Point string }

// ParseFstab reads what the generator needs of fstab(5). Lines that are not
// understood are left to those whom they concern.
func ParseFstab(text string) []Mount {
	var mounts []Mount
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if point := unescape(f[1]); strings.HasPrefix(point, "/") {
			mounts = append(mounts, Mount{Source: unescape(f[0]), Point: path.Clean(point)})
		}
	}
	return mounts
}

// unescape turns the \NNN of fstab(5) into bytes and leaves anything else.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && strings.Trim(s[i+1:i+4], "01234567") == "" && s[i+1] <= '3' {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountOf returns the mount that a path lies on.
func mountOf(mounts []Mount, file string) (Mount, bool) {
	var best Mount
	for _, m := range mounts {
		inside := m.Point == "/" || file == m.Point || strings.HasPrefix(file, m.Point+"/")
		if inside && len(m.Point) >= len(best.Point) { // a later line covers an earlier one
			best = m
		}
	}
	return best, best.Point != ""
}
