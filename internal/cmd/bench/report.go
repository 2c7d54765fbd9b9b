package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// The table of the last run stands in the file between these lines.
const (
	blockBegin = "<!-- make bench writes from here -->"
	blockEnd   = "<!-- to here -->"
)

// render makes the table: a line for each comparison, a column for each kernel.
func render(columns []column, machine string, now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s; %s.\n\n", now.UTC().Format("2006-01-02"), machine)
	b.WriteString("| what | goal |")
	for _, c := range columns {
		fmt.Fprintf(&b, " %s (%s) |", c.kernel, c.release)
	}
	b.WriteString("\n|---|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, what := range order(columns) {
		goal, cells := "", ""
		for _, c := range columns {
			r, ok := c.find(what)
			if !ok {
				cells += " - |"
				continue
			}
			if goal == "" {
				goal = r.goal()
			} else if g := r.goal(); g != goal {
				goal += ", " + g
			}
			cells += " " + r.String() + " |"
		}
		fmt.Fprintf(&b, "| %s | %s |%s\n", what, goal, cells)
	}
	return b.String()
}

// order lists what was measured, in the order of measuring.
func order(columns []column) []string {
	var names []string
	seen := map[string]bool{}
	for _, c := range columns {
		for _, r := range c.rows {
			if !seen[r.What] {
				seen[r.What] = true
				names = append(names, r.What)
			}
		}
	}
	return names
}

func (c column) find(what string) (row, bool) {
	for _, r := range c.rows {
		if r.What == what {
			return r, true
		}
	}
	return row{}, false
}

// describe tells what the host is, with the load that it has beside ours.
func describe() string {
	model := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for _, line := range strings.Split(string(text), "\n") {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	load := "unknown"
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		load = strings.Join(strings.Fields(string(text))[:3], " ")
	}
	return fmt.Sprintf("%d x %s, load at the end %s", runtime.NumCPU(), model, load)
}

// replaceBlock puts text between the marks in the file.
func replaceBlock(path, text string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok1 := strings.Cut(string(old), blockBegin+"\n")
	_, after, ok2 := strings.Cut(rest, blockEnd)
	if !ok1 || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q", path, blockBegin, blockEnd)
	}
	return os.WriteFile(path, []byte(before+blockBegin+"\n\n"+text+"\n"+blockEnd+after), 0o644)
}
