// Command guarantees writes what the guard's guest tests measured into
// docs/guarantees.md. It reads the tests' output, of any number of kernels, on
// standard input:
//
//	go run ./internal/cmd/guarantees docs/guarantees.md < output
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// kernels are the guests, in the order of the table's columns.
var kernels = []string{"uml", "6.1", "6.12", "new"}

const (
	begin = "<!-- measured: begin -->\n"
	end   = "<!-- measured: end -->\n"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: guarantees FILE.md < test output")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "guarantees:", err)
		os.Exit(1)
	}
}

func run(path string, results io.Reader) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return fmt.Errorf("%s lacks the lines %q and %q", path, strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	r, err := read(results)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(head+begin+r.markdown()+end+tail), 0o644)
}

// row is one attack under one set of circumstances; the columns are kernels.
type row struct{ fs, grade, guard, attack string }

// results are the lines of all runs, rows in the order of their first appearance.
type results struct {
	rows    []row
	cells   map[row]map[string]string // kernel -> what happened
	sums    map[string]*sum           // file system -> all its cells
	latency []string
}

// sum counts the cells of a file system. A cell that was run twice counts once, as
// what it was the last time.
type sum struct{ cells map[string]cell }

type cell struct {
	refused, torn, written bool
	guarded                bool // pinned, with a running guard
}

// String is the sentence above a table.
func (s *sum) String() string {
	var refused, torn, harmless, written, guarded int
	for _, c := range s.cells {
		switch {
		case c.refused:
			refused++
		case c.torn:
			torn++
		default:
			harmless++
		}
		if c.written {
			written++
			if c.guarded {
				guarded++
			}
		}
	}
	return fmt.Sprintf("%d cells: %d refused, %d allowed and harmless, %d torn down. Blocks of others were written in %d of them, "+
		"%d of these with a pinned image and a running guard.", len(s.cells), refused, harmless, torn, written, guarded)
}

func read(in io.Reader) (results, error) {
	r := results{cells: map[row]map[string]string{}, sums: map[string]*sum{}}
	scanner := bufio.NewScanner(in)
	for scanner.Scan() {
		f := strings.Split(strings.TrimSpace(scanner.Text()), "|")
		switch {
		case f[0] == "MATRIX" && len(f) == 10:
			key := row{fs: f[2], grade: f[3], guard: f[4], attack: f[5]}
			if r.cells[key] == nil {
				r.cells[key] = map[string]string{}
				r.rows = append(r.rows, key)
			}
			r.cells[key][f[1]] = outcome(f[6], f[7], f[8], f[9])
			if r.sums[key.fs] == nil {
				r.sums[key.fs] = &sum{cells: map[string]cell{}}
			}
			torn := f[7] == "torn down"
			r.sums[key.fs].cells[strings.Join(f[1:6], "|")] = cell{
				refused: !torn && f[6] != "done", torn: torn, written: f[9] != "0",
				guarded: f[3] != "unsafe" && f[4] == "running",
			}
		case f[0] == "LATENCY" && len(f) == 7:
			r.latency = append(r.latency, fmt.Sprintf("| %s | %s | %s | %s | %s | %s |\n", f[1], f[2], f[3], f[4], f[5], f[6]))
		}
	}
	if len(r.rows) == 0 && scanner.Err() == nil {
		return r, fmt.Errorf("no line of a matrix in the input")
	}
	return r, scanner.Err()
}

// outcome is a cell's text: what the attacker saw and what became of the mapping.
func outcome(call, result, window, written string) string {
	text := call
	switch {
	case result == "untouched" && call == "done":
		text = "allowed, harmless"
	case result == "torn down" && window == "-":
		text += "; torn down"
	case result == "torn down":
		text += "; torn down after " + window
	case result != "untouched":
		text += "; " + result
	}
	if written != "0" {
		text += "; **" + written + " blocks of others written**"
	}
	return text
}

// markdown returns the generated part of the document.
func (r results) markdown() string {
	var b strings.Builder
	for _, fs := range []string{"ext4", "xfs", "f2fs"} {
		var rows []row
		for _, x := range r.rows {
			if x.fs == fs {
				rows = append(rows, x)
			}
		}
		if len(rows) == 0 {
			continue
		}
		ran := slices.DeleteFunc(slices.Clone(kernels), func(k string) bool {
			return !slices.ContainsFunc(rows, func(x row) bool { return r.cells[x][k] != "" })
		})
		fmt.Fprintf(&b, "### %s\n\n%s\n\n| attack | grade | guard | %s |\n|---|---|---|%s\n", fs, r.sums[fs], strings.Join(ran, " | "), strings.Repeat("---|", len(ran)))
		for _, x := range rows {
			fmt.Fprintf(&b, "| %s | %s | %s |", x.attack, x.grade, x.guard)
			for _, k := range ran {
				fmt.Fprintf(&b, " %s |", r.cells[x][k])
			}
			b.WriteString("\n")
		}
		b.WriteString("\n")
	}
	if len(r.latency) > 0 {
		b.WriteString("### From an event to the error table\n\n| kernel | change | trials | p50 | p99 | longest |\n|---|---|---|---|---|---|\n")
		b.WriteString(strings.Join(r.latency, "") + "\n")
	}
	return b.String()
}
