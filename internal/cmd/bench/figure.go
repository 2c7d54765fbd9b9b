package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
)

// A figure is one thing that was measured in virtual time.
type figure struct {
	Group string `json:"group"`
	Name  string `json:"name"`
	Unit  string `json:"unit"`
	// Passes are medians. All of a group is measured, and then all of it again.
	Passes [2]float64 `json:"passes"`
}

// The units. An instruction takes a nanosecond of virtual time.
const (
	instructions = "instructions"
	microseconds = "µs" // with the waits for disks and timers
	mebibytes    = "MiB"
	perCent      = "%"
)

func (f figure) value() float64 { return (f.Passes[0] + f.Passes[1]) / 2 }

// unsteady says that the passes differ by more than a hundredth: no figure to build on.
func (f figure) unsteady() bool {
	return math.Abs(f.Passes[0]-f.Passes[1]) > 0.01*f.value()
}

// A result is what one kernel gave.
type result struct {
	Kernel  string   `json:"kernel"`
	Release string   `json:"release"`
	Go      string   `json:"go"` // that dmloop was built with
	Date    string   `json:"date"`
	Figures []figure `json:"figures"`
}

func (r result) find(name string) (figure, bool) {
	i := slices.IndexFunc(r.Figures, func(f figure) bool { return f.Name == name })
	if i < 0 {
		return figure{}, false
	}
	return r.Figures[i], true
}

// keep writes a result into its file. Groups that were not measured this time stay as they are there.
func keep(docs string, r *result) error {
	path := filepath.Join(docs, "bench", r.Kernel+".json")
	old, err := readResult(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var all []figure
	for _, group := range groupNames() {
		from := r.Figures
		if !slices.ContainsFunc(from, func(f figure) bool { return f.Group == group }) {
			from = old.Figures
		}
		for _, f := range from {
			if f.Group == group {
				all = append(all, f)
			}
		}
	}
	r.Figures = all
	return writeJSON(path, r)
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

func readResult(path string) (r result, err error) {
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	return r, err
}

// readFigures reads what the guest has printed, one figure a line.
func readFigures(r io.Reader) ([]figure, error) {
	var figures []figure
	for lines := bufio.NewScanner(r); ; {
		if !lines.Scan() {
			return figures, lines.Err()
		}
		var f figure
		if err := json.Unmarshal(lines.Bytes(), &f); err != nil {
			return nil, fmt.Errorf("%q: %w", lines.Text(), err)
		}
		figures = append(figures, f)
	}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}
