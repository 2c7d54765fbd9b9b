package backing

import (
	"slices"

	"dmloop/extents"
	"dmloop/internal/image"
)

// hopeless returns the problems of facts that neither writing to the file nor a
// later step (sealing, on btrfs) can take away.
func hopeless(facts image.Facts, length extents.Bytes, repairable ...extents.Rule) []extents.Problem {
	if facts.Kind() == "btrfs" {
		repairable = append(repairable, extents.UnsupportedFS, extents.Unsealed)
	}
	return slices.DeleteFunc(facts.Problems(0, length), func(p extents.Problem) bool {
		return slices.Contains(repairable, p.Rule)
	})
}
