package extents

import (
	"fmt"
	"slices"
)

// Equal reports whether a and b put every byte of the file at the same place and
// say the same about it. How the bytes are cut into rows does not matter, nor does
// anything beyond the end of the file. A layout whose rows overlap or run
// backwards equals nothing, not even itself.
func (l Layout) Equal(other Layout) bool { return Diff(l, other) == "" }

// Diff returns a sentence that names the first byte of the file for which a and b
// are not equal, or "" when they are. The offset counts from the start of the file.
func Diff(a, b Layout) string {
	if !a.ordered() || !b.ordered() {
		return "the extents overlap or run backwards"
	}
	if a.Size != b.Size {
		return fmt.Sprintf("the size changed from %d to %d bytes", a.Size, b.Size)
	}
	if slices.Equal(a.Extents, b.Extents) { // nearly always, and seen at once
		return ""
	}
	x, y := cursor{rows: a.Clip().Extents}, cursor{rows: b.Clip().Extents}
	for pos := Bytes(0); pos < a.Size; {
		was, is := x.at(pos, a.Size), y.at(pos, b.Size)
		if was.place != is.place {
			return fmt.Sprintf("byte %d changed from %s to %s", pos, was.place, is.place)
		}
		pos = min(was.end, is.end)
	}
	return ""
}

// place is where one byte of a file lies.
type place struct {
	allocated bool
	physical  Bytes
	flags     Flags
}

func (p place) String() string {
	if !p.allocated {
		return "a hole"
	}
	text := fmt.Sprintf("address %d", p.physical)
	for _, name := range p.flags.Names() {
		text += " " + name
	}
	return text
}

// stretch is a place with the offset in the file up to which it holds.
type stretch struct {
	place
	end Bytes
}

// cursor walks ordered rows forward.
type cursor struct {
	rows []Extent
}

// at returns the stretch at offset pos, which must not go backwards from call to
// call; after the last row comes a hole up to size.
func (c *cursor) at(pos, size Bytes) stretch {
	for len(c.rows) > 0 && c.rows[0].end() <= pos {
		c.rows = c.rows[1:]
	}
	if len(c.rows) == 0 {
		return stretch{end: size}
	}
	row := c.rows[0]
	if row.Logical > pos {
		return stretch{end: row.Logical}
	}
	return stretch{
		place: place{allocated: true, physical: row.Physical + pos - row.Logical, flags: row.Flags.judged()},
		end:   row.end(),
	}
}
