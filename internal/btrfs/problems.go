package btrfs

import (
	"fmt"

	"dmloop/extents"
	"dmloop/internal/advice"
)

// Facts is what decides, beside the layout, whether a file on btrfs can be mapped.
type Facts struct {
	NoCOW      bool // FS_NOCOW_FL: chattr +C
	Compressed bool // FS_COMPR_FL: chattr +c
	Sealed     bool
	Filesystem Filesystem
	Chunks     []Chunk
}

// Problems returns the rules of btrfs that an image breaks, all of them. The
// layout is as the kernel reports it, untranslated.
func Problems(l extents.Layout, f Facts) []extents.Problem {
	var out []extents.Problem
	if !f.NoCOW {
		out = append(out, extents.Problem{
			Rule: extents.BtrfsCOW, Message: "btrfs writes every change of the file to new blocks",
		})
	}
	if f.Compressed {
		out = append(out, extents.Problem{
			Rule: extents.Compressed, Message: "btrfs may compress the file",
			Remedy: advice.ClearCompression,
		})
	}
	if f.Filesystem.Devices != 1 {
		out = append(out, extents.Problem{
			Rule: extents.MultiDevice, Message: fmt.Sprintf("the btrfs file system spans %d devices", f.Filesystem.Devices),
			Remedy: advice.OneDevice,
		})
	}
	if p, bad := profileProblem(l, f); bad {
		out = append(out, p)
	}
	if !f.Sealed {
		out = append(out, extents.Problem{
			Rule: extents.Unsealed, Message: "on btrfs only a sealed image is safe from balance, defragmentation and snapshots",
			Remedy: advice.Seal,
		})
	}
	return out
}

// profileProblem finds the first extent that lies in a chunk of a profile other
// than single. Rows without an address are left to the rules that speak of them.
func profileProblem(l extents.Layout, f Facts) (extents.Problem, bool) {
	for _, e := range l.Clip().Extents {
		for at := e.Physical; at < e.Physical+e.Length; {
			c, ok := find(f.Chunks, at)
			if !ok {
				break
			}
			if c.Type.Profile() != "single" {
				return extents.Problem{
					Rule: extents.BtrfsProfile, Offset: e.Logical, Length: e.Length,
					Message: (&ProfileError{Extent: e, Chunk: c}).Error(),
				}, true
			}
			at = c.end()
		}
	}
	return extents.Problem{}, false
}
