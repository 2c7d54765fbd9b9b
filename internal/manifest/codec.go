package manifest

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"dmloop/dmtable"
	"dmloop/extents"
)

// stored is the JSON form. Layout and table are text blobs: as JSON objects a
// hundred thousand extents would cost more time than the mapping itself.
type stored struct {
	Manifest
	FileSize   extents.Bytes `json:"layout_size"`
	LayoutText string        `json:"layout"` // "logical physical length" in bytes, a line each
	TableText  string        `json:"table"`  // dmsetup's text format
}

// Encode returns the stored form of m.
func Encode(m Manifest) ([]byte, error) {
	m.Version = Version
	s := stored{
		Manifest:   m,
		FileSize:   m.Layout.Size,
		LayoutText: layoutText(m.Layout),
		TableText:  m.Table.String(),
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encoding the manifest of %s: %w", m.Name, err)
	}
	return append(b, '\n'), nil
}

// Decode reads a stored manifest. Another version, a bad name or uuid, or text
// that does not parse is an error: a record that cannot be trusted is not used.
func Decode(b []byte) (Manifest, error) {
	var s stored
	if err := json.Unmarshal(b, &s); err != nil {
		return Manifest{}, fmt.Errorf("not a manifest: %w", err)
	}
	m := s.Manifest
	if m.Version != Version {
		return Manifest{}, fmt.Errorf("manifest version %d, this dmloop knows version %d", m.Version, Version)
	}
	if err := dmtable.CheckName(m.Name); err != nil {
		return Manifest{}, err
	}
	if !strings.HasPrefix(m.UUID, UUIDPrefix) {
		return Manifest{}, fmt.Errorf("uuid %q does not begin with %s", m.UUID, UUIDPrefix)
	}
	layout, err := parseLayout(s.LayoutText)
	if err != nil {
		return Manifest{}, err
	}
	layout.Size = s.FileSize
	m.Layout = layout
	if m.Table, err = dmtable.ParseText(s.TableText); err != nil {
		return Manifest{}, fmt.Errorf("stored table: %w", err)
	}
	return m, nil
}

func layoutText(l extents.Layout) string {
	b := make([]byte, 0, 40*len(l.Extents))
	for _, e := range l.Extents {
		b = strconv.AppendInt(b, int64(e.Logical), 10)
		b = append(b, ' ')
		b = strconv.AppendInt(b, int64(e.Physical), 10)
		b = append(b, ' ')
		b = strconv.AppendInt(b, int64(e.Length), 10)
		b = append(b, '\n')
	}
	return string(b)
}

func parseLayout(text string) (extents.Layout, error) {
	l := extents.Layout{Extents: make([]extents.Extent, 0, strings.Count(text, "\n"))}
	for line := 1; text != ""; line++ {
		row, rest, _ := strings.Cut(text, "\n")
		text = rest
		var v [3]extents.Bytes
		for i := range v {
			field, tail, _ := strings.Cut(row, " ")
			row = tail
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil || n < 0 {
				return extents.Layout{}, fmt.Errorf("stored layout, line %d: %q is no byte count", line, field)
			}
			v[i] = extents.Bytes(n)
		}
		if row != "" {
			return extents.Layout{}, fmt.Errorf("stored layout, line %d: more than three fields", line)
		}
		l.Extents = append(l.Extents, extents.Extent{Logical: v[0], Physical: v[1], Length: v[2]})
	}
	return l, nil
}
