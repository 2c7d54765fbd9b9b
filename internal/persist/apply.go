package persist

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"dmloop/dmtable"
	"dmloop/internal/advice"
	"dmloop/internal/atomicfile"
)

// Dir is where plans that are in force are kept, with the files as they were before.
const Dir = "/etc/dmloop/persist"

// Machine is what a plan is carried out on.
type Machine struct {
	Dir string
	// MakeInitramfs runs the maker's command and returns when its result is on disk.
	MakeInitramfs func(Maker) error
	// Initramfs looks into each initramfs that the machine may be booted with.
	Initramfs func(Maker) ([]Initramfs, error)
	// Step is told what comes next, before it is done.
	Step func(what string)
}

// Apply carries a plan out. What an earlier run has done is left as it is, so that
// a run that was cut is finished by running it again.
func (m Machine) Apply(p Plan) error {
	if err := m.keep(p); err != nil {
		return err
	}
	if err := m.edit(p.Tab); err != nil {
		return err
	}
	if err := m.makeInitramfs(p); err != nil {
		return err
	}
	if err := m.proveInitramfs(p); err != nil {
		return err
	}
	for _, e := range p.Fstab {
		if err := m.edit(e); err != nil {
			return err
		}
	}
	return nil
}

// Revert takes a plan back, in reverse, and forgets it at the end.
func (m Machine) Revert(p Plan) error {
	for _, e := range slices.Backward(p.Fstab) {
		if err := m.edit(e.reverse()); err != nil {
			return err
		}
	}
	if err := m.edit(p.Tab.reverse()); err != nil {
		return err
	}
	if err := m.makeInitramfs(p); err != nil {
		return err
	}
	m.Step("forget the backups in " + filepath.Join(m.Dir, p.Name))
	if err := os.RemoveAll(filepath.Join(m.Dir, p.Name)); err != nil {
		return err
	}
	return atomicfile.Remove(m.planFile(p.Name))
}

func (e Edit) reverse() Edit { return Edit{Path: e.Path, Old: e.New, New: e.Old} }

func (m Machine) makeInitramfs(p Plan) error {
	if p.Maker == "" {
		return nil
	}
	m.Step("run " + strings.Join(p.Maker.Command(), " "))
	return m.MakeInitramfs(p.Maker)
}

// edit changes one file, unless that is done.
func (m Machine) edit(e Edit) error {
	text, mode, err := read(e.Path)
	if err != nil {
		return err
	}
	changed, err := e.apply(text)
	if err != nil || changed == text {
		return err
	}
	m.Step("edit " + e.Path)
	return atomicfile.Write(e.Path, []byte(changed), mode)
}

// apply returns the text with the line changed. A text in which that was done already
// is returned as it is.
func (e Edit) apply(text string) (string, error) {
	var b strings.Builder
	replaced, there := false, e.New == ""
	for line := range strings.Lines(text) {
		bare := strings.TrimSuffix(line, "\n")
		switch {
		case e.New != "" && bare == e.New:
			there = true
		case e.Old != "" && bare == e.Old && !replaced:
			replaced = true
			if e.New != "" {
				b.WriteString(e.New + line[len(bare):])
			}
			continue
		}
		b.WriteString(line)
	}
	switch {
	case replaced:
		return b.String(), nil
	case there:
		return text, nil
	case e.Old != "":
		return "", fmt.Errorf("%s: the line %q is not there: somebody has changed it since", e.Path, e.Old)
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text + e.New + "\n", nil
}

// read returns a file's text and mode; a file that is not there is empty.
func read(path string) (string, fs.FileMode, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", 0o644, nil
	}
	if err != nil {
		return "", 0, err
	}
	text, err := os.ReadFile(path)
	return string(text), info.Mode().Perm(), err
}

// keep stores the plan and a copy of each file before the first edit.
func (m Machine) keep(p Plan) error {
	if err := os.MkdirAll(filepath.Join(m.Dir, p.Name), 0o700); err != nil {
		return err
	}
	if old, err := m.Load(p.Name); err == nil {
		if old.Point != p.Point {
			return &RefusedError{fmt.Sprintf("the shim %s is in force for %s", p.Name, old.Point), advice.NameShimOption}
		}
		return nil
	}
	paths := []string{p.Tab.Path}
	for _, e := range p.Fstab {
		paths = append(paths, e.Path)
	}
	for _, path := range slices.Compact(paths) {
		text, _, err := read(path)
		if err != nil {
			return err
		}
		backup := filepath.Join(m.Dir, p.Name, filepath.Base(path)+".backup")
		m.Step("copy " + path + " to " + backup)
		if err := atomicfile.Write(backup, []byte(text), 0o600); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(m.planFile(p.Name), append(text, '\n'), 0o600)
}

func (m Machine) planFile(name string) string { return filepath.Join(m.Dir, name+".json") }

// Load returns the plan that is in force for the shim called name.
func (m Machine) Load(name string) (Plan, error) {
	var p Plan
	if err := dmtable.CheckName(name); err != nil {
		return p, err
	}
	text, err := os.ReadFile(m.planFile(name))
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(text, &p); err != nil {
		return p, fmt.Errorf("%s: %w", m.planFile(name), err)
	}
	if p.Version != Version || p.Name != name {
		return p, fmt.Errorf("%s: not a plan of version %d for %s", m.planFile(name), Version, name)
	}
	return p, nil
}

// Plans lists the plans that are in force.
func (m Machine) Plans() ([]Plan, error) {
	files, err := filepath.Glob(filepath.Join(m.Dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var plans []Plan
	for _, file := range files {
		p, err := m.Load(strings.TrimSuffix(filepath.Base(file), ".json"))
		if err != nil {
			return nil, err
		}
		plans = append(plans, p)
	}
	return plans, nil
}
