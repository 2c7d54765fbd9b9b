package blockdev

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
)

// Mapping is a live device-mapper device with its table.
type Mapping struct {
	Name   string
	Device dmtable.Device
	Table  dmtable.Table
}

// claim is a stretch of a base device that somebody uses.
type claim struct {
	dmtable.Segment
	owner string        // empty for ours
	at    extents.Bytes // ours: where the stretch begins in the file
}

// Overlaps compares the segments of a table that is to be, whose first one shows
// byte from of the file, with the tables of other mappings, and returns a problem of
// rule overlap for each stretch that both use. A row of a
// mapping that is neither linear, striped, mirror nor error counts as using the whole of
// every device it names. It returns an error for a linear or striped row that is
// not understood. Mappings on which the image's own host file system stands must be
// left out by the caller; Below finds them.
func Overlaps(segments []dmtable.Segment, from extents.Bytes, others []Mapping) ([]extents.Problem, error) {
	claims := make([]claim, 0, len(segments))
	ours := map[dmtable.Device]bool{}
	at := extents.Bytes(0)
	for _, seg := range segments {
		claims = append(claims, claim{Segment: seg, at: at})
		ours[seg.Device] = true
		at += extents.Bytes(seg.Length) * dmtable.SectorSize
	}
	for _, m := range others {
		for i, row := range m.Table {
			areas, err := rowClaims(row, ours)
			if err != nil {
				return nil, fmt.Errorf("table of %s, row %d %w", m.Name, i, err)
			}
			for _, area := range areas {
				if ours[area.Device] {
					claims = append(claims, claim{Segment: area, owner: m.Name})
				}
			}
		}
	}
	return sweep(claims, from), nil
}

// rowClaims returns what a row of another mapping uses.
func rowClaims(row dmtable.Row, ours map[dmtable.Device]bool) ([]dmtable.Segment, error) {
	switch row.Target {
	case dmtable.Linear:
		seg, err := row.Segment()
		return []dmtable.Segment{seg}, err
	case dmtable.Striped:
		s, err := row.Stripes()
		return s.Areas, err
	case dmtable.Error:
		return nil, nil
	}
	words := strings.Fields(row.Args)
	var used []dmtable.Segment
	for i, word := range words {
		dev, err := dmtable.ParseDevice(word)
		if err != nil || !ours[dev] {
			continue
		}
		area := dmtable.Segment{Device: dev, Length: dmtable.MaxSectors}
		if row.Target == mirror && i+1 < len(words) { // pvmove's: a device, and from where on
			if start, err := strconv.ParseUint(words[i+1], 10, 64); err == nil && dmtable.Sectors(start) <= dmtable.MaxSectors-row.Length {
				area.Start, area.Length = dmtable.Sectors(start), row.Length
			}
		}
		used = append(used, area)
	}
	return used, nil
}

// mirror copies a stretch of one device to others: rows of it are there while pvmove is
// at work, also where nothing of the image is moved.
const mirror = "mirror"

// sweep goes through the claims in order of device and sector. It keeps the claim
// of ours and the one of others that reach furthest; ours do not overlap one
// another in a table of a sound layout, and where others overlap one another the
// furthest one stands for all.
func sweep(claims []claim, from extents.Bytes) []extents.Problem {
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.Device.Major, b.Device.Major), cmp.Compare(a.Device.Minor, b.Device.Minor),
			cmp.Compare(a.Start, b.Start))
	})
	var mine, theirs *claim // whichever reaches furthest so far on this device
	var clashes []common
	for i := range claims {
		c := &claims[i]
		if i > 0 && claims[i-1].Device != c.Device {
			mine, theirs = nil, nil
		}
		other, same := &theirs, &mine
		if c.owner != "" {
			other, same = &mine, &theirs
		}
		if *other != nil && (*other).End() > c.Start {
			clashes = append(clashes, clash(c, *other))
		}
		if *same == nil || c.End() > (*same).End() {
			*same = c
		}
	}
	slices.SortFunc(clashes, func(a, b common) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.owner, b.owner))
	})
	found := extents.Findings{From: from}
	for _, c := range clashes {
		found.AddRemedy(extents.Overlap, c.at, extents.Bytes(c.Length)*dmtable.SectorSize,
			fmt.Sprintf("the live mapping %s lies on the same blocks of %s", c.owner, c.Device), advice.UnmapOther.Of(c.owner))
	}
	return found.Problems()
}

// common is a stretch that one of our claims shares with one of the mapping owner.
type common claim

// clash returns what two claims have in common.
func clash(a, b *claim) common {
	mine, theirs := a, b
	if a.owner != "" {
		mine, theirs = b, a
	}
	from, to := max(mine.Start, theirs.Start), min(mine.End(), theirs.End())
	return common{
		Segment: dmtable.Segment{Device: mine.Device, Start: from, Length: to - from},
		owner:   theirs.owner,
		at:      mine.at + extents.Bytes(from-mine.Start)*dmtable.SectorSize,
	}
}
