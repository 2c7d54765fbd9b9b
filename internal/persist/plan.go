// Package persist makes the file system of an installed machine be mounted from a
// shim at every boot, so that images on it can be mapped, and takes that back.
//
// Every edit leaves a machine that boots: the line of dmlooptab says noauto, so the
// shim is made only when fstab or the initramfs asks for it; the initramfs that makes
// it mounts the root file system from it whatever root= says; and fstab is changed
// last.
package persist

import (
	"fmt"
	"path"
	"strings"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/kernlist"
	"dmloop/internal/tab"
)

// Maker is the program that makes the initramfs.
type Maker string

// The makers that have a hook of dmloop.
const (
	InitramfsTools Maker = "initramfs-tools"
	Dracut         Maker = "dracut"
)

// Command returns the command that makes the maker build all of them again.
func (m Maker) Command() []string {
	switch m {
	case InitramfsTools:
		return []string{"update-initramfs", "-u", "-k", "all"}
	case Dracut:
		return []string{"dracut", "--force", "--regenerate-all"}
	}
	return nil
}

// Edit changes one line of one file. Old is empty for a line that is appended.
type Edit struct {
	Path string `json:"path"`
	Old  string `json:"old"`
	New  string `json:"new"`
}

// Plan is all that has to be done, in order; it is kept until it is taken back.
type Plan struct {
	Version int    `json:"version"`
	Point   string `json:"mountpoint"`
	Name    string `json:"name"` // of the shim
	UUID    string `json:"uuid"` // of the file system
	Tab     Edit   `json:"tab"`
	Maker   Maker  `json:"initramfs,omitempty"` // empty when the initramfs need not know
	Fstab   []Edit `json:"fstab"`
}

// Version is the version of the stored plan.
const Version = 1

// Facts are what a plan is made from.
type Facts struct {
	Point      string // the mount point
	Name       string // wanted for the shim; empty for a default
	UUID       string // of the file system that is mounted there
	FstabPath  string
	Fstab      string // text
	TabPath    string
	Tab        string // text
	Maker      Maker  // what makes this machine's initramfs
	KernelRoot string // value of root= on the kernel command line
	// Same reports whether a source of fstab is the device that is mounted at Point.
	Same func(source string) bool
}

// RefusedError says why there is no plan, and what to do.
type RefusedError struct {
	Message string
	Remedy  extents.Remedy
}

func (e *RefusedError) Error() string { return e.Message }

// early are the mount points that the initramfs mounts.
var early = map[string]bool{"/": true, "/usr": true}

// Make returns the plan. It is pure except for Same.
func Make(f Facts) (Plan, error) {
	p := Plan{Version: Version, Point: f.Point, Name: f.Name, UUID: f.UUID}
	if p.Name == "" {
		p.Name = DefaultName(f.Point)
	}
	if err := plainName(p.Name); err != nil {
		return Plan{}, err
	}
	table, err := tab.Parse(f.Tab)
	if err != nil {
		return Plan{}, &RefusedError{f.TabPath + ": " + err.Error(), advice.RepairFirst}
	}
	if e, taken := table.Find(p.Name); taken {
		return Plan{}, &RefusedError{fmt.Sprintf("the name %s is taken by line %d of %s", p.Name, e.Line, f.TabPath), advice.NameShimOption}
	}
	for _, e := range table {
		if e.Kind == tab.Shim && f.Same != nil && f.Same(e.Source) {
			return Plan{}, &RefusedError{fmt.Sprintf("line %d of %s makes the shim %s of the same device, and two would let one file system be mounted twice", e.Line, f.TabPath, e.Label),
				advice.MountFromShim.Of(e.Label)}
		}
	}
	options := "shim,noauto"
	if early[f.Point] {
		options += ",x-initrd.attach"
		if p.Maker, err = maker(f); err != nil {
			return Plan{}, err
		}
	}
	p.Tab = Edit{Path: f.TabPath, New: tab.Format(p.Name, "UUID="+f.UUID, "", options)}
	p.Fstab = fstabEdits(f, p.Name)
	if len(p.Fstab) == 0 && f.Point != "/" {
		return Plan{}, &RefusedError{"no line of " + f.FstabPath + " mounts " + f.Point, advice.WriteFstab}
	}
	return p, nil
}

// maker refuses a root file system that no initramfs would mount from the shim.
func maker(f Facts) (Maker, error) {
	switch f.Maker {
	case InitramfsTools:
		return f.Maker, nil // its script overrides root=
	case Dracut:
		tag, _, _ := strings.Cut(f.KernelRoot, "=")
		if tag == "UUID" || tag == "LABEL" {
			return f.Maker, nil
		}
		return "", &RefusedError{fmt.Sprintf("the kernel is started with root=%s, which dracut would mount below the shim", f.KernelRoot),
			advice.ChangeRoot.Of(f.UUID)}
	}
	return "", &RefusedError{"neither initramfs-tools nor dracut is installed, and only an initramfs can make the shim of " + f.Point, advice.InstallInitramfs}
}

// DefaultName returns the name of the shim for a mount point.
func DefaultName(point string) string {
	if point == "/" {
		return "shim-root"
	}
	dash := func(r rune) rune {
		if plainRune(r) {
			return r
		}
		return '-'
	}
	return "shim-" + strings.Map(dash, strings.Trim(point, "/"))
}

// plainRune reports whether a name with this character is taken as it is everywhere.
func plainRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("+-.@_", r)
}

// plainName keeps the name to what fstab, unit names and shells take as it is.
func plainName(name string) error {
	if m, err := dmtable.Mangle(name); err != nil || m != name || strings.ContainsAny(name, "#:=") {
		return &RefusedError{fmt.Sprintf("%q is not a plain name for a shim", name), advice.NameShimOption}
	}
	return nil
}

// fstabEdits replaces the device in every line that mounts this file system, since
// nothing can mount it below the shim any more.
func fstabEdits(f Facts, name string) []Edit {
	var edits []Edit
	for line := range kernlist.Lines(f.Fstab) {
		fields := kernlist.Split(line)
		if len(fields) < 3 || strings.HasPrefix(fields[0], "#") || strings.Contains(","+field(fields, 3)+",", ",bind,") {
			continue
		}
		if path.Clean(kernlist.Unescape(fields[1])) != f.Point && !f.Same(kernlist.Unescape(fields[0])) || fields[0] == "/dev/mapper/"+name {
			continue
		}
		at := strings.Index(line, fields[0])
		edits = append(edits, Edit{Path: f.FstabPath, Old: line, New: line[:at] + "/dev/mapper/" + name + line[at+len(fields[0]):]})
	}
	return edits
}

func field(fields []string, i int) string {
	if i < len(fields) {
		return fields[i]
	}
	return ""
}
