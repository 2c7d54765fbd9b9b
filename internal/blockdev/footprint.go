package blockdev

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sort"

	"dmloop/dmtable"
	"dmloop/internal/dm"
)

// Targets beside those that dmtable knows of which it matters here what they do.
const (
	snapshotOrigin = "snapshot-origin" // passes every request on to the same sector
	snapshotCopy   = "snapshot"        // names its origin only to read what was not copied
)

// Footprint returns where areas of the host device lie on the devices below it: one
// layer down, and everything further down as far as tables are linear, striped, or
// the origin of a snapshot. Any other row, and a device that is not a device-mapper
// device, ends the walk.
func Footprint(src TableSource, host dmtable.Device, areas []dmtable.Segment) (direct, deeper []dmtable.Segment, err error) {
	layer := map[dmtable.Device][]dmtable.Segment{host: areas}
	for depth := 0; len(layer) > 0; depth++ {
		next := map[dmtable.Device][]dmtable.Segment{}
		for dev, on := range layer {
			_, table, err := src.State(dm.ByDevice(dev))
			if errors.Is(err, dm.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, nil, fmt.Errorf("reading the table of %s: %w", dev, err)
			}
			for _, area := range through(passing(table), on) {
				next[area.Device] = append(next[area.Device], area)
				if depth == 0 {
					direct = append(direct, area)
				} else {
					deeper = append(deeper, area)
				}
			}
		}
		layer = next
	}
	return direct, deeper, nil
}

// passing takes those rows of a table apart that hand requests on as they are.
func passing(table dmtable.Table) []dmtable.Span {
	var rows []dmtable.Span
	for _, r := range table {
		span, err := r.Span()
		if err != nil {
			dev, err := dmtable.ParseDevice(r.Args)
			if err != nil || r.Target != snapshotOrigin {
				continue
			}
			span = dmtable.Span{Start: r.Start, Length: r.Length,
				Areas: []dmtable.Segment{{Device: dev, Start: r.Start, Length: r.Length}}}
		}
		rows = append(rows, span)
	}
	return rows
}

// through returns what lies below areas of the device that has these rows.
func through(rows []dmtable.Span, areas []dmtable.Segment) []dmtable.Segment {
	var below []dmtable.Segment
	for _, area := range areas {
		i := sort.Search(len(rows), func(i int) bool { return rows[i].End() > area.Start })
		for ; i < len(rows) && rows[i].Start < area.End(); i++ {
			from, to := max(area.Start, rows[i].Start), min(area.End(), rows[i].End())
			below = append(below, rows[i].Spread(from, to)...)
		}
	}
	return below
}

// Sharing returns those of others that use any of the areas. What the rows of others
// use is as for Overlaps, except that a snapshot does not use its origin. With plain, rows
// that are neither linear nor striped count as using nothing.
func Sharing(areas []dmtable.Segment, others []Mapping, plain bool) ([]Mapping, error) {
	mine := merged(areas)
	known := map[dmtable.Device]bool{}
	for dev := range mine {
		known[dev] = true
	}
	var sharing []Mapping
	for _, m := range others {
		shares, err := m.uses(mine, known, plain)
		if err != nil {
			return nil, err
		}
		if shares {
			sharing = append(sharing, m)
		}
	}
	return sharing, nil
}

// uses reports whether a row of the mapping lies on one of the areas.
func (m *Mapping) uses(mine map[dmtable.Device][]dmtable.Segment, known map[dmtable.Device]bool, plain bool) (bool, error) {
	for i, row := range m.Table {
		if row.Target == snapshotCopy || plain && row.Target != dmtable.Linear && row.Target != dmtable.Striped {
			continue
		}
		claims, err := rowClaims(row, known)
		if err != nil {
			return false, fmt.Errorf("table of %s, row %d %w", m.Name, i, err)
		}
		for _, c := range claims {
			on := mine[c.Device]
			at := sort.Search(len(on), func(i int) bool { return on[i].End() > c.Start })
			if at < len(on) && on[at].Start < c.End() {
				return true, nil
			}
		}
	}
	return false, nil
}

// merged sorts areas by device and sector, and makes one of those that touch.
func merged(areas []dmtable.Segment) map[dmtable.Device][]dmtable.Segment {
	on := map[dmtable.Device][]dmtable.Segment{}
	sorted := slices.SortedFunc(slices.Values(areas), func(a, b dmtable.Segment) int { return cmp.Compare(a.Start, b.Start) })
	for _, a := range sorted {
		have := on[a.Device]
		if n := len(have); n > 0 && have[n-1].End() >= a.Start {
			have[n-1].Length = max(have[n-1].End(), a.End()) - have[n-1].Start
			continue
		}
		on[a.Device] = append(have, a)
	}
	return on
}

// Covers reports whether every one of the areas lies within linear or striped rows of the
// mapping, as those of a mapped image lie within its host device.
func (m *Mapping) Covers(areas []dmtable.Segment) bool {
	var held []dmtable.Segment
	for _, row := range passing(m.Table) {
		held = append(held, row.Areas...)
	}
	mine := merged(held)
	return !slices.ContainsFunc(areas, func(a dmtable.Segment) bool {
		on := mine[a.Device]
		at := sort.Search(len(on), func(i int) bool { return on[i].End() > a.Start })
		return at == len(on) || on[at].Start > a.Start || on[at].End() < a.End()
	})
}
