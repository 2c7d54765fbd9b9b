package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"dmloop/internal/vmtest/vm"
)

// The tables stand in the file between these lines.
const (
	blockBegin = "<!-- make bench writes from here -->"
	blockEnd   = "<!-- to here -->"
)

// goalTable has a line for each goal and a column for each kernel.
func goalTable(all []result) string {
	var b strings.Builder
	header(&b, "| what | goal |", all)
	for _, g := range goals {
		fmt.Fprintf(&b, "| %s | %s |", g.what, g.limit())
		for _, r := range all {
			fmt.Fprintf(&b, " %s |", g.cell(r))
		}
		b.WriteString("\n")
	}
	return b.String()
}

func header(b *strings.Builder, first string, all []result) {
	b.WriteString(first)
	for _, r := range all {
		fmt.Fprintf(b, " %s (%s) |", r.Kernel, r.Release)
	}
	b.WriteString("\n" + strings.Repeat("|---", strings.Count(first, "|")-1+len(all)) + "|\n")
}

// figureTable has a line for each figure of a group.
func figureTable(all []result, groups ...string) string {
	var b strings.Builder
	header(&b, "| what | unit |", all)
	for _, name := range names(all, groups) {
		var cells string
		unit := ""
		for _, r := range all {
			f, ok := r.find(name)
			if !ok {
				cells += " - |"
				continue
			}
			unit = f.Unit
			cells += " " + f.String() + " |"
		}
		fmt.Fprintf(&b, "| %s | %s |%s\n", name, unit, cells)
	}
	return b.String()
}

// String is a cell of a table.
func (f figure) String() string {
	text := fmt.Sprintf("%.0f", f.value())
	if f.value() < 100 {
		text = fmt.Sprintf("%.3g", f.value())
	}
	if f.unsteady() {
		text += " ~"
	}
	return text
}

// names lists the figures of some groups, in the order of measuring.
func names(all []result, groups []string) []string {
	var list []string
	seen := map[string]bool{}
	for _, group := range groups {
		for _, r := range all {
			for _, f := range r.Figures {
				if f.Group == group && !seen[f.Name] {
					seen[f.Name] = true
					list = append(list, f.Name)
				}
			}
		}
	}
	return list
}

// ways is the order of the targets in tables and pictures.
var ways = []string{onDisk, onMapped, onFile, onLoop}

// wayTable has a line for each job on each kernel, and a column for each way to the blocks.
func wayTable(all []result, group string) string {
	var b strings.Builder
	b.WriteString("| job | kernel | unit |")
	for _, w := range ways {
		b.WriteString(" " + w + " |")
	}
	b.WriteString(" loop / mapped |\n" + strings.Repeat("|---", 4+len(ways)) + "|\n")
	for _, name := range names(all, []string{group}) {
		j, ok := strings.CutSuffix(name, ": "+onDisk)
		if !ok {
			continue
		}
		for _, r := range all {
			wayRow(&b, r, j)
		}
	}
	return b.String()
}

func wayRow(b *strings.Builder, r result, job string) {
	var cells []string
	var unit string
	var mapped, loop float64
	for _, w := range ways {
		f, ok := r.find(job + ": " + w)
		if !ok {
			return
		}
		unit = f.Unit
		cells = append(cells, f.String())
		switch w {
		case onMapped:
			mapped = f.value()
		case onLoop:
			loop = f.value()
		}
	}
	fmt.Fprintf(b, "| %s | %s | %s | %s | %.2f |\n", job, r.Kernel, unit, strings.Join(cells, " | "), loop/mapped)
}

// writeDocs writes the tables and the pictures of all results that are kept.
func writeDocs(docs string) error {
	var all []result
	for _, kernel := range vm.Kernels {
		r, err := readResult(filepath.Join(docs, "bench", kernel+".json"))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return err
		}
		all = append(all, r)
	}
	var b strings.Builder
	b.WriteString("Measured")
	for i, r := range all {
		fmt.Fprintf(&b, "%s on %s (%s)", map[bool]string{true: "", false: ","}[i == 0], r.Date, r.Kernel)
	}
	b.WriteString(". `~` marks a figure whose second measurement in the same run differs by more than 1 %.\n\n### Goals\n\n")
	b.WriteString(goalTable(all))
	b.WriteString("\n### A request\n\n" + wayTable(all, "request"))
	b.WriteString("\n### Twelve jobs\n\n" + wayTable(all, "jobs"))
	b.WriteString("\n### Programs\n\n" + figureTable(all, "start", "pair", "seal", "extents", "map", "table", "guard", "idle", "scale"))
	if err := replaceBlock(filepath.Join(docs, "benchmarks.md"), b.String()); err != nil {
		return err
	}
	last := all[len(all)-1]
	if err := os.WriteFile(filepath.Join(docs, "bench", "request.svg"), []byte(requestPicture(last)), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(docs, "bench", "map.svg"), []byte(mapPicture(last)), 0o644)
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
