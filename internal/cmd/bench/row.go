package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// A row is one comparison: our median, the other side's, and the goal for
// ours divided by theirs.
type row struct {
	Group  string    `json:"group"`
	What   string    `json:"what"`
	Ours   []float64 `json:"ours"`
	Theirs []float64 `json:"theirs"` // empty: the goal is for our value itself
	Unit   string    `json:"unit"`
	AtMost bool      `json:"at_most"` // else at least
	Goal   float64   `json:"goal"`    // 0: measured for information
}

// value is what the goal is about.
func (r row) value() float64 {
	if len(r.Theirs) == 0 {
		return median(r.Ours)
	}
	return median(r.Ours) / median(r.Theirs)
}

func (r row) met() bool {
	if r.AtMost {
		return r.value() <= r.Goal
	}
	return r.value() >= r.Goal
}

func (r row) goal() string {
	sign, unit := "≥ ", "x"
	if r.AtMost {
		sign = "≤ "
	}
	if len(r.Theirs) == 0 {
		unit = " " + r.Unit
	}
	if r.Goal == 0 {
		return "-"
	}
	return fmt.Sprintf("%s%g%s", sign, r.Goal, unit)
}

// String is the cell of the table.
func (r row) String() string {
	verdict := ""
	if r.Goal != 0 && !r.met() {
		verdict = " **missed**"
	}
	if len(r.Theirs) == 0 {
		return fmt.Sprintf("%.4g %s%s", r.value(), r.Unit, verdict)
	}
	return fmt.Sprintf("%.3gx (%.4g / %.4g %s)%s", r.value(), median(r.Ours), median(r.Theirs), r.Unit, verdict)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// readRows reads the rows that the guest has printed, one a line.
func readRows(r io.Reader) ([]row, error) {
	var rows []row
	for lines := bufio.NewScanner(r); ; {
		if !lines.Scan() {
			return rows, lines.Err()
		}
		var one row
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			return nil, fmt.Errorf("%q: %w", lines.Text(), err)
		}
		rows = append(rows, one)
	}
}
