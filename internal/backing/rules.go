package backing

import (
	"slices"

	"dmloop/extents"
	"dmloop/internal/image"
)

// hopeless returns the problems of facts that writing to the file cannot take away;
// the repairable rules are left out.
func hopeless(facts image.Facts, length extents.Bytes, repairable ...extents.Rule) []extents.Problem {
	return slices.DeleteFunc(facts.Problems(0, length), func(p extents.Problem) bool {
		return slices.Contains(repairable, p.Rule)
	})
}
