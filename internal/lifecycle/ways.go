package lifecycle

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/dm"
	"dmloop/internal/fstype"
	"dmloop/internal/helper"
	"dmloop/internal/hostfiles"
	"dmloop/internal/image"
	"dmloop/internal/persist"
	"dmloop/internal/pin"
	"dmloop/internal/survey"
)

// Way is what can be done where no image in a folder can be mapped, on this machine. Which of
// its fields have a meaning depends on its kind.
type Way struct {
	Kind    WayKind
	Device  string         // what the file system is mounted from
	Shim    string         // name of the shim over it
	Mounts  []image.Mount  // all mounts of the file system, first the one that the others can be made from
	Unmount []string       // their mount points, the latest first
	Options string         // of mount(8) for the first of them; empty for the usual ones
	Point   string         // where file systems are mounted: the folder's, or that of another one
	Type    string         // of the file system
	Group   string         // volume group
	Grade   pin.Grade      // of images on another file system; GradeUnsafe where they have to be sealed
	Refusal string         // why the way is closed, where that is worth knowing
	Remedy  extents.Remedy // what opens it
	Unasked bool           // it was not asked whether the way is open: that takes root
}

// WayKind says what a Way is.
type WayKind string

// The ways out, in the order in which they are offered.
const (
	WayShim      WayKind = "shim"           // mount the file system through a shim, now
	WayRemovable WayKind = "shim-stick"     // the same for a disk that will be pulled out
	WayPersist   WayKind = "shim-at-boot"   // have it mounted through a shim from the next boot on
	WayElsewhere WayKind = "elsewhere"      // another file system of this machine
	WayVolume    WayKind = "logical-volume" // a new one on LVM
	WayLoop      WayKind = "loop"           // the loop driver
)

// ground is what the ways out depend on: plain values, read from this machine.
type ground struct {
	report    survey.FolderReport
	device    string        // path of the host device
	mapped    bool          // it is a device-mapper device
	removable bool          // it will be taken away
	mounts    []image.Mount // of this file system, the main one first
	unmount   []string      // their mount points, the latest first
	options   string        // what fstab has for it, or the mount itself
	shim      string        // a name that is free
	persist   error         // why a shim cannot be had at boot, nil where it can
	asked     bool          // persist is known
	elsewhere []Way
	groups    []string // volume groups, none where LVM's programs are not installed
	loop      bool     // there is a loop driver
}

// WaysOut says what can be done about a folder where no image can be mapped. It only reads.
// The table of activations is at tab.
func (s *System) WaysOut(r survey.FolderReport, tab string) []Way {
	g := ground{report: r}
	if shimHelps(r) {
		s.readHost(&g, tab)
	}
	g.elsewhere = s.elsewhere(r)
	if _, err := helper.Find("lvcreate"); err == nil {
		g.groups, _ = blockdev.VolumeGroups(s.sysfs) // without them it is one way less
	}
	_, err := os.Stat("/dev/loop-control")
	g.loop = err == nil
	return g.ways()
}

// shimHelps reports whether what the file system is mounted from is all that is in the way, and
// a layer more would help: it does not where a device is suspended or changing.
func shimHelps(r survey.FolderReport) bool {
	if len(r.Problems) != 1 {
		return false
	}
	p := r.Problems[0]
	return p.Rule == extents.MountedDirectly || p.Rule == extents.UnresolvableStack && p.Remedy.Way == advice.ShimOnTop.Way
}

// readHost reads what a shim under the folder's file system depends on. What cannot be read is
// left as it is: a way less, or one with the usual words.
func (s *System) readHost(g *ground, tab string) {
	mount := g.report.Facts.Mount
	g.device, _ = blockdev.NodePath(s.sysfs, g.report.Host)
	g.mapped = strings.HasPrefix(g.device, "/dev/mapper/")
	mounts, _ := image.MountsOf(mount.Device)
	if len(mounts) == 0 {
		return
	}
	for _, m := range slices.Backward(mounts) {
		g.unmount = append(g.unmount, m.Point)
	}
	g.mounts = mainFirst(mounts)
	g.shim = s.freeName(persist.DefaultName(g.mounts[0].Point))
	paths := persist.LocalPaths(tab)
	text, _ := os.ReadFile(paths.Fstab)
	g.options = mountOptions(string(text), g.mounts[0])
	if taken, _ := blockdev.Removable(s.sysfs, g.report.Host); taken {
		g.removable = !stays(string(text), mounts)
	}
	if g.mapped || g.removable || unix.Geteuid() != 0 || blockdev.AnySuspended(s.sysfs) { // it reads all disks
		return
	}
	facts, err := persist.Gather(g.mounts[0].Point, "", paths, blockdev.Local())
	if err == nil {
		_, err = persist.Make(facts)
	}
	if !errors.Is(err, fs.ErrPermission) { // as in a sandbox
		g.persist, g.asked = err, true
	}
}

// stays reports whether the machine is made to find the file system at every boot, whatever its
// disk hangs on: an SD card may be all that a board has.
func stays(fstab string, mounts []image.Mount) bool {
	return early(mounts) || slices.ContainsFunc(hostfiles.ParseFstab(fstab), func(line hostfiles.Mount) bool {
		return slices.ContainsFunc(mounts, func(m image.Mount) bool { return m.Point == line.Point })
	})
}

// early reports whether it is a file system that nobody can unmount, the root's or that of /usr.
func early(mounts []image.Mount) bool {
	return slices.ContainsFunc(mounts, func(m image.Mount) bool { return m.Point == "/" || m.Point == "/usr" })
}

// freeName is the name, with a number where another device has it.
func (s *System) freeName(name string) string {
	conn, err := s.mapper()
	if err != nil {
		return name
	}
	for free, i := name, 2; ; i++ {
		if _, err := conn.Info(dm.ByName(free)); err != nil {
			return free
		}
		free = fmt.Sprintf("%s-%d", name, i)
	}
}

// mountOptions returns how a file system is mounted again: by what fstab says, else by the
// options of the mount that are not the usual ones, and by those that name another device or
// another part of the file system.
func mountOptions(fstab string, m image.Mount) string {
	for _, line := range hostfiles.ParseFstab(fstab) {
		if line.Point == m.Point && line.Options != "" {
			return leaveOut(strings.Split(line.Options, ","), "defaults", "rw", "auto", "noauto", "nofail", "user", "users")
		}
	}
	options := slices.Clone(m.Options)
	for _, o := range m.SuperOptions {
		for _, name := range []string{"subvol=", "logdev=", "rtdev=", "journal_path="} {
			if strings.HasPrefix(o, name) && o != "subvol=/" {
				options = append(options, o)
			}
		}
	}
	return leaveOut(options, "rw", "relatime")
}

func leaveOut(options []string, usual ...string) string {
	return strings.Join(slices.DeleteFunc(options, func(o string) bool {
		return slices.Contains(usual, o) || strings.HasPrefix(o, "x-")
	}), ",")
}

// mainFirst puts the mount before the others that these can be made from.
func mainFirst(mounts []image.Mount) []image.Mount {
	for i, m := range mounts {
		if m.Root == "/" {
			return slices.Concat(mounts[i:i+1], mounts[:i], mounts[i+1:])
		}
	}
	return mounts
}

// fewElsewhere is how many other file systems are named.
const fewElsewhere = 3

// elsewhere finds other file systems of this machine on which images can be mapped as things
// are.
func (s *System) elsewhere(r survey.FolderReport) (ways []Way) {
	mounts, err := image.Mounts()
	if err != nil || blockdev.AnySuspended(s.sysfs) { // or it would wait for a file system that nobody asked about
		return nil
	}
	quiet := s.surveyor()
	quiet.Log = slog.New(slog.DiscardHandler)
	seen := []dmtable.Device{r.Facts.Mount.Device}
	for _, m := range mounts {
		if !fstype.Of(m.Type).Known() || m.Root != "/" || slices.Contains(seen, m.Device) || covered(mounts, m) {
			continue
		}
		seen = append(seen, m.Device)
		there, err := quiet.Folder(m.Point)
		if err != nil || !there.Mappable() || there.Facts.Mount.ID != m.ID {
			continue
		}
		offer, sealed := there.Offer()
		way := Way{Kind: WayElsewhere, Point: m.Point, Type: m.Type, Grade: offer.Grade}
		if sealed {
			way.Grade = pin.Unsafe
		}
		if ways = append(ways, way); len(ways) == fewElsewhere {
			break
		}
	}
	return ways
}

// covered reports whether a later mount hides m.
func covered(mounts []image.Mount, m image.Mount) bool {
	for i := len(mounts) - 1; i >= 0 && mounts[i].ID != m.ID; i-- {
		if mounts[i].Point == m.Point {
			return true
		}
	}
	return false
}

// ways decides.
func (g *ground) ways() (ways []Way) {
	if len(g.report.Problems) == 0 {
		return nil
	}
	if shimHelps(g.report) {
		ways = g.shims()
	}
	ways = append(ways, g.elsewhere...)
	if !g.removable {
		for _, group := range g.groups {
			ways = append(ways, Way{Kind: WayVolume, Group: group})
		}
	}
	if g.loop {
		ways = append(ways, Way{Kind: WayLoop, Point: g.report.Path})
	}
	return ways
}

// shims are the ways through a shim. The root file system, and /usr, nobody can unmount.
func (g *ground) shims() (ways []Way) {
	if len(g.mounts) == 0 { // in another mount namespace
		return nil
	}
	point := g.mounts[0].Point
	shim := Way{Unmount: g.unmount, Device: g.device, Shim: g.shim, Mounts: g.mounts, Options: g.options, Point: point, Type: g.report.Facts.Filesystem}
	if _, again := shim.Remounts(); again && !early(g.mounts) && g.device != "" {
		shim.Kind = WayShim
		if g.removable {
			shim.Kind = WayRemovable
		}
		ways = append(ways, shim)
	}
	if g.removable || g.mapped {
		return ways
	}
	atBoot := Way{Kind: WayPersist, Point: point, Unasked: !g.asked}
	if g.persist != nil {
		atBoot.Refusal = g.persist.Error()
		if refused := (*persist.RefusedError)(nil); errors.As(g.persist, &refused) {
			atBoot.Remedy = refused.Remedy
		}
	}
	return append(ways, atBoot)
}

// Remount is one call of mount(8).
type Remount struct {
	Type, Options string // of a mount from the device; empty for a bind mount, and for the usual options
	Bind          string // the folder that is bound there; empty for a mount from the device
	Point         string
}

// Remounts is how the mounts that a way unmounts are made again from another device, the first of
// Mounts first. It is false where they cannot be made from that one.
func (w Way) Remounts() (again []Remount, ok bool) {
	for i, m := range w.Mounts {
		main := w.Mounts[0]
		inside, below := strings.CutPrefix(m.Root+"/", strings.TrimSuffix(main.Root, "/")+"/")
		switch {
		case i == 0 && (m.Root == "/" || subvolume(m)):
			again = append(again, Remount{Type: w.Type, Options: w.Options, Point: m.Point})
		case i > 0 && subvolume(m):
			again = append(again, Remount{Type: w.Type, Options: "subvol=" + m.Root, Point: m.Point})
		case i > 0 && below:
			again = append(again, Remount{Bind: filepath.Join(main.Point, inside), Point: m.Point})
		default:
			return nil, false
		}
	}
	return again, true
}

// subvolume reports whether the mount shows a subvolume of btrfs as a whole.
func subvolume(m image.Mount) bool { return m.HasSuperOption("subvol=" + m.Root) }
