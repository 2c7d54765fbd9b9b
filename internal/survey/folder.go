package survey

import (
	"errors"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/btrfs"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
	"dmloop/internal/pin"
	"dmloop/internal/seal"
	"dmloop/internal/swap"
)

// FolderReport is what can be said in advance of images in a folder.
type FolderReport struct {
	Path          string
	Facts         image.Facts    // of the folder
	Host          dmtable.Device // what the file system is mounted from; major 0 where it is not known
	Plain, Sealed Offer
	OnlyNew       bool              // of images that are not sealed only those that dmloop creates
	Problems      []extents.Problem // in the way of every image there
}

// Offer is what one kind of images can have in a folder once nothing else is in the way.
type Offer struct {
	Pins    []pin.Kind
	Grade   pin.Grade
	Gate    guard.Gate
	GateWhy error             // why the gate is not the kernel's own
	Lacks   []extents.Problem // why such an image cannot be had; none where it can
}

// Mappable reports whether an image of some kind could be mapped there.
func (r FolderReport) Mappable() bool { return len(r.Problems) == 0 }

// Offer returns what an image there can have: as it is, or where that is not possible sealed.
func (r FolderReport) Offer() (o Offer, sealed bool) {
	if len(r.Plain.Lacks) > 0 && len(r.Sealed.Lacks) == 0 {
		return r.Sealed, true
	}
	return r.Plain, false
}

// Folder runs the rules that are about the file system and what lies below it, and so about
// every image in the folder at path. It writes nothing, not even a file without a name.
func (s Surveyor) Folder(path string) (FolderReport, error) {
	r := FolderReport{Path: path}
	folder, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return r, err
	}
	defer folder.Close()
	err = s.folder(&r, folder)
	return r, err
}

func (s Surveyor) folder(r *FolderReport, folder *os.File) (err error) {
	if r.Facts, err = image.FolderFacts(folder); err != nil {
		return err
	}
	r.Problems = r.Facts.FolderProblems(r.Path)
	kind := fstype.Of(r.Facts.Kind())
	if !kind.Known() {
		return nil
	}
	r.Plain, r.Sealed = s.offer(r.Path, r.Facts, false), s.offer(r.Path, r.Facts, true)
	if len(r.Plain.Lacks) > 0 && len(r.Sealed.Lacks) > 0 {
		r.Problems = append(r.Problems, append(slices.Clone(r.Plain.Lacks), r.Sealed.Lacks...)...)
	}
	r.OnlyNew = kind.Name == "f2fs" && !pinsWrittenFiles(kernelVersion())
	r.Problems = append(r.Problems, s.readOnlyFolder(r.Facts)...)
	if kind.Name == "f2fs" && r.Facts.Mount.HasSuperOption("mode=lfs") {
		r.Problems = append(r.Problems, lfsMode())
	}
	if slices.ContainsFunc(r.Problems, func(p extents.Problem) bool {
		return p.Rule == extents.UnsupportedFS || p.Rule == extents.MultiDevice
	}) {
		return nil // then there may be no device to look at
	}
	r.Host = r.Facts.Device
	if kind.OwnAddresses {
		if r.Host, err = ownDevice(s.Sysfs, folder); err != nil {
			return err
		}
		r.Problems = append(r.Problems, s.dataProfile(folder)...)
	}
	problem, err := s.stackProblem(r.Host)
	if problem != nil {
		r.Problems = append(r.Problems, forRoot(*problem, r.Facts.Mount.Point))
	}
	return err
}

// dataProfile refuses a btrfs file system that keeps no data as it is needed: what is written
// there later is kept as what is there.
func (s Surveyor) dataProfile(folder *os.File) []extents.Problem {
	chunks, err := btrfs.ReadChunks(folder)
	if err != nil {
		s.Log.Warn("not checked: how the file system keeps data", "directory", folder.Name(), "error", err)
		return nil
	}
	other := ""
	for _, c := range chunks {
		switch profile := c.Type.Profile(); {
		case c.Type&btrfs.Data == 0:
		case profile == "single":
			return nil
		default:
			other = profile
		}
	}
	if other == "" { // none yet
		return nil
	}
	return []extents.Problem{{Rule: extents.BtrfsProfile, Message: "the file system keeps all data with the profile " + other + " instead of single"}}
}

// stackProblem tells why nothing can be mapped through the table of the host device.
func (s Surveyor) stackProblem(host dmtable.Device) (*extents.Problem, error) {
	conn, connErr := s.Mapper()
	var source blockdev.TableSource
	if connErr == nil {
		source = conn
	}
	_, problem, err := blockdev.ReadStack(s.Sysfs, source, host)
	if err != nil {
		return nil, errors.Join(connErr, err)
	}
	return problem, nil
}

// offer says what an image on a file system can have, as map would choose.
func (s Surveyor) offer(path string, f image.Facts, sealed bool) Offer {
	wanted := pin.Wanted(f.Kind(), sealed)
	o := Offer{Pins: pin.Resulting(f.Kind(), wanted), Grade: s.Resulting(f, wanted, ""), Gate: guard.GateNone}
	switch o.GateWhy = s.Gated(f, ""); {
	case o.GateWhy == nil:
		o.Gate, o.Pins = guard.GateBPF, append(slices.Clone(o.Pins), pin.BPF)
	case Resulting(f, wanted) == pin.Guarded:
		o.Gate = guard.GateFanotify
	}
	switch {
	case !sealed && o.Grade == pin.Unsafe:
		o.Lacks = []extents.Problem{{Rule: extents.Unsealed, Message: "only sealed images can be mapped on " + f.Filesystem}}
	case !sealed && s.LacksGate(File{Path: path, Facts: f}, wanted, ""):
		o.Lacks = []extents.Problem{Gateless()}
	case sealed:
		o.Lacks = sealLacks(f.BlockSize)
	}
	return o
}

// sealLacks tells what keeps every image from being sealed and held by the kernel, on a file
// system with blocks of this size.
func sealLacks(block extents.Bytes) []extents.Problem {
	if p := seal.LargeBlocks(block); p != nil {
		return []extents.Problem{*p}
	}
	if _, err := os.Stat(swap.TablePath); errors.Is(err, fs.ErrNotExist) {
		return []extents.Problem{{Rule: extents.Unpinnable, Message: "this kernel has no swap files (CONFIG_SWAP), so it holds no sealed image"}}
	}
	return nil
}

// readOnlyFolder refuses a file system on which no pin can be set.
func (s Surveyor) readOnlyFolder(f image.Facts) []extents.Problem {
	if !f.ReadOnly {
		return nil
	}
	return []extents.Problem{readOnlyProblem(f, s.onReadOnlyDevice(f))}
}

// ownDevice returns the device of the file system that a file is on, where its own number is
// anonymous.
func ownDevice(sysfs string, file *os.File) (dmtable.Device, error) {
	fs, err := btrfs.ReadFilesystem(file)
	if err != nil {
		return dmtable.Device{}, err
	}
	return btrfsDevice(sysfs, fs)
}

// forRoot replaces the remedy for a file system that nobody can unmount.
func forRoot(p extents.Problem, point string) extents.Problem {
	if p.Rule == extents.MountedDirectly && (point == "/" || point == "/usr") {
		p.Remedy = advice.PersistShim.Of(point)
	}
	return p
}
