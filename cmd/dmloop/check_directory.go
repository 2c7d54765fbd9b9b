package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/image"
	"dmloop/internal/lifecycle"
	"dmloop/internal/survey"
)

// directoryJSON is what check says of a directory: of every image that would be made in it.
type directoryJSON struct {
	Directory  string          `json:"directory"`
	Filesystem string          `json:"filesystem"`
	MountPoint string          `json:"mount_point"`
	Device     string          `json:"device"`
	UUID       string          `json:"uuid"`
	Mappable   bool            `json:"mappable"`
	SealedOnly bool            `json:"sealed_only"`
	Pin        []guard.PinKind `json:"pin"`
	Grade      guard.Grade     `json:"grade"`
	Gate       guard.Gate      `json:"gate"`
	GateWhy    string          `json:"gate_why"`
	Problems   []problemJSON   `json:"problems"`
	Notes      []noteJSON      `json:"notes"`
	Ways       []wayJSON       `json:"ways"`

	problems []extents.Problem // the same
}

// wayJSON is a way out: commands to copy, in which words in capitals are left to the user.
type wayJSON struct {
	Way      lifecycle.WayKind `json:"way"`
	What     string            `json:"what"`
	Commands []string          `json:"commands"`
}

func checkDirectory(sys *lifecycle.System, o survey.Options, path string) (directoryJSON, error) {
	f, err := sys.DescribeFolder(path, tabPath(), o.AsSealed)
	if err != nil {
		return directoryJSON{}, err
	}
	offer, sealed := f.Offer()
	if o.AsSealed {
		offer, sealed = f.Sealed, true
	}
	d := directoryJSON{Directory: path, Filesystem: f.Facts.Filesystem, MountPoint: f.Facts.Mount.Point, Device: f.Device, UUID: f.UUID,
		Mappable: f.Mappable(), SealedOnly: sealed, Pin: append([]guard.PinKind{}, offer.Pins...), Grade: offer.Grade, Gate: offer.Gate,
		Problems: problemsJSON(inFolder(path), f.Problems), Notes: folderNotes(f), Ways: []wayJSON{}, problems: f.Problems}
	if offer.GateWhy != nil {
		d.GateWhy = offer.GateWhy.Error()
	}
	for _, w := range f.Ways {
		d.Ways = append(d.Ways, inCommands(w))
	}
	return d, nil
}

// inFolder stands for an image in a folder, in hints.
func inFolder(path string) string { return filepath.Join(path, "IMAGE") }

// traitNotes are the words for what images take over from their folder.
var traitNotes = map[image.Trait]string{
	image.TraitProject:  "images here count toward the quota of the folder's project",
	image.TraitCasefold: "names here are the same in upper and lower case; that changes nothing for an image",
	image.TraitCompress: "files here get the attribute c and may be compressed: dmloop create makes images without it, dmloop provision takes it off others",
}

// folderNotes says what refuses no image, or not every one.
func folderNotes(f lifecycle.Folder) []noteJSON {
	notes := []noteJSON{}
	add := func(message, hint string) { notes = append(notes, noteJSON{message, hint}) }
	about := inFolder(f.Path)
	if plain, sealed := f.Plain.Lacks, f.Sealed.Lacks; len(plain) > 0 && len(sealed) == 0 {
		add("only sealed images can be mapped here: "+plain[0].Message, "")
	} else if len(sealed) > 0 && len(plain) == 0 {
		add("images here cannot be sealed: "+sealed[0].Message, problemHint(about, sealed[0]))
	}
	if f.OnlyNew && len(f.Plain.Lacks) == 0 {
		add("this kernel's f2fs pins only files without blocks: an image has to be made with dmloop create, or sealed", "")
	}
	for _, t := range f.Facts.Traits() {
		add(traitNotes[t], "")
	}
	return notes
}

// inCommands puts a way out into words and commands.
func inCommands(w lifecycle.Way) wayJSON {
	out := wayJSON{Way: w.Kind, Commands: []string{}}
	run := func(command string, names ...string) {
		for _, name := range names {
			command += " " + shellWord(name)
		}
		out.Commands = append(out.Commands, command)
	}
	switch w.Kind {
	case lifecycle.WayShim, lifecycle.WayRemovable:
		out.What = "mount the file system through a shim, until the next boot"
		if w.Kind == lifecycle.WayRemovable {
			out.What = fmt.Sprintf("mount the file system through a shim, and before the disk is taken away: umount %s && dmloop shim --remove %s", shellWord(w.Point), shellWord(w.Shim))
		}
		for _, point := range w.Unmount {
			run("umount", point)
		}
		run("dmloop shim", w.Device, w.Shim)
		again, _ := w.Remounts() // or it would be no way
		for _, m := range again {
			switch {
			case m.Bind != "":
				run("mount --bind", m.Bind, m.Point)
			case m.Options != "":
				run("mount -t "+m.Type+" -o", m.Options, "/dev/mapper/"+w.Shim, m.Point)
			default:
				run("mount -t "+m.Type, "/dev/mapper/"+w.Shim, m.Point)
			}
		}
	case lifecycle.WayPersist:
		out.What = "have it mounted through a shim from the next boot on"
		switch {
		case w.Refusal != "":
			out.What += ": not as things are, " + w.Refusal
			if h := hint(w.Point, w.Remedy); h != "" {
				out.What += "; " + h
			}
			return out
		case w.Unasked:
			out.What += " (whether that can be done takes root to tell)"
		}
		run("dmloop shim --persist", w.Point)
	case lifecycle.WayElsewhere:
		out.What = fmt.Sprintf("keep images at %s (%s, grade %s)", printable(w.Point), w.Type, w.Grade)
		if w.Grade == guard.GradeUnsafe {
			out.What = fmt.Sprintf("keep images at %s (%s), sealed", printable(w.Point), w.Type)
		}
		run("dmloop create", inFolder(w.Point), "SIZE")
	case lifecycle.WayVolume:
		device := "/dev/" + w.Group + "/images"
		out.What = "keep images on a logical volume of their own, if the volume group " + printable(w.Group) + " has room"
		run("lvcreate --name images --size SIZE", w.Group)
		run("mkfs.ext4", device)
		run("mount", device, "DIRECTORY")
	case lifecycle.WayLoop:
		out.What = "do without dmloop"
		run("losetup --direct-io=on --find --show", inFolder(w.Point))
	}
	return out
}

func printDirectory(env *cliEnv, d directoryJSON) {
	name := printable(d.Directory)
	switch {
	case d.Mappable && d.SealedOnly:
		fmt.Fprintf(env.stdout, "%s: images here can be mapped once they are sealed (%s, grade %s)\n", name, d.Filesystem, d.Grade)
	case d.Mappable:
		fmt.Fprintf(env.stdout, "%s: images here can be mapped (%s, grade %s)\n", name, d.Filesystem, d.Grade)
	default:
		fmt.Fprintf(env.stdout, "%s: images here cannot be mapped, %s\n", name, countOf(d.problems))
	}
	if d.Device != "" {
		uuid := ""
		if d.UUID != "" {
			uuid = ", UUID " + d.UUID
		}
		fmt.Fprintf(env.stdout, "  %s on %s, mounted at %s%s\n", d.Filesystem, printable(d.Device), printable(d.MountPoint), uuid)
	}
	problems := slices.Clone(d.problems)
	for i, p := range problems {
		switch p.Remedy.Way {
		case advice.MountThroughShim.Way, advice.PersistShim.Way, advice.ShimOnTop.Way:
			if len(problems) == 1 && len(d.Ways) > 0 { // the ways out say it, and for this machine
				problems[i].Remedy = extents.Remedy{}
			}
		}
	}
	printRules(env, inFolder(d.Directory), problems)
	if len(d.Pin) > 0 {
		d.printOffer(env)
	}
	for _, n := range d.Notes {
		printNote(env, n)
	}
	if d.Mappable {
		seal := map[bool]string{true: "--seal "}[d.SealedOnly]
		about := shellWord(inFolder(d.Directory))
		fmt.Fprintf(env.stdout, "  to make one: dmloop create %s SIZE && dmloop map %s%s\n", printable(about), seal, printable(about))
		return
	}
	for i, w := range d.Ways {
		if i == 0 {
			fmt.Fprintln(env.stdout, "  ways out:")
		}
		fmt.Fprintf(env.stdout, "  - %s\n", printable(w.What))
		for _, c := range w.Commands {
			fmt.Fprintf(env.stdout, "      %s\n", printable(c))
		}
	}
}

// printOffer says what would hold an image.
func (d directoryJSON) printOffer(env *cliEnv) {
	when := ""
	if !d.Mappable {
		when = "with that out of the way, grade " + string(d.Grade) + "; "
	}
	var pins []string
	for _, k := range d.Pin {
		pins = append(pins, string(k))
	}
	gate := string(d.Gate)
	if d.GateWhy != "" {
		gate += " (not bpf: " + d.GateWhy + ")"
	}
	fmt.Fprintf(env.stdout, "  %spin %s; gate %s\n", when, strings.Join(pins, ", "), printable(gate))
}
