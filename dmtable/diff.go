package dmtable

import "fmt"

// Diff returns a sentence about the first row in which now differs from t, with
// the sectors of the mapped device that it concerns, or "" when both are equal.
func (t Table) Diff(now Table) string {
	for i := range min(len(t), len(now)) {
		if t[i] != now[i] {
			return fmt.Sprintf("sectors %s were %s, now sectors %s are %s",
				t[i].span(), t[i].target(), now[i].span(), now[i].target())
		}
	}
	switch {
	case len(t) > len(now):
		row := &t[len(now)]
		return fmt.Sprintf("sectors %s were %s, now the table ends at sector %d", row.span(), row.target(), row.Start)
	case len(t) < len(now):
		row := &now[len(t)]
		return fmt.Sprintf("the table ended at sector %d, now sectors %s are %s", row.Start, row.span(), row.target())
	}
	return ""
}

func (r *Row) span() string { return fmt.Sprintf("%d-%d", r.Start, r.End()-1) }

func (r *Row) target() string {
	if r.Args == "" {
		return r.Target
	}
	return r.Target + " " + r.Args
}

// Begins reports whether t shows at its beginning all that start shows, in the same rows,
// whose last one may be longer: what a table is after rows were appended to it that were
// joined where they continue one another.
func (t Table) Begins(start Table) bool {
	last := len(start) - 1
	if last < 0 || len(t) <= last || !t[:last].Equal(start[:last]) {
		return false
	}
	was, is := start[last], t[last]
	return was.Start == is.Start && was.Target == is.Target && was.Args == is.Args &&
		(was.Length == is.Length || was.Target == Linear && was.Length < is.Length)
}
