package hostfiles

import (
	"path"
	"strings"

	"dmloop/internal/kernlist"
)

// Mount is a line of fstab.
type Mount struct {
	Source, Point string
	Options       string // as they stand there, with commas between; empty when there are none
}

// ParseFstab reads what the generator needs of fstab(5). Lines that are not
// understood are left to those whom they concern.
func ParseFstab(text string) []Mount {
	var mounts []Mount
	for line := range kernlist.Lines(text) {
		f := kernlist.Split(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if point := kernlist.Unescape(f[1]); strings.HasPrefix(point, "/") {
			m := Mount{Source: kernlist.Unescape(f[0]), Point: path.Clean(point)}
			if len(f) > 3 {
				m.Options = kernlist.Unescape(f[3])
			}
			mounts = append(mounts, m)
		}
	}
	return mounts
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
