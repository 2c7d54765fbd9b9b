package survey

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/btrfs"
	"dmloop/internal/fstype"
	"dmloop/internal/image"
	"dmloop/internal/pin"
)

// FolderReport is what can be said in advance of images in a folder.
type FolderReport struct {
	Path       string
	Filesystem string
	Grade      pin.Grade // of a plain image with every pin that can be set; GradeUnsafe where it has to be sealed
	Problems   []extents.Problem
}

// Folder runs the rules that are about the file system and what lies below it, and so about
// every image in the folder at path. It changes nothing.
func (s Surveyor) Folder(path string) (FolderReport, error) {
	r := FolderReport{Path: path}
	folder, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return r, err
	}
	defer folder.Close()
	facts, err := image.FolderFacts(folder)
	if err != nil {
		return r, err
	}
	r.Filesystem = facts.Filesystem
	fs := fstype.Of(facts.Kind())
	r.Grade = s.Resulting(facts, pin.Wanted(fs.Name, false), "")
	if r.Problems = facts.FolderProblems(); len(r.Problems) > 0 {
		return r, nil
	}
	host := facts.Device
	if fs.OwnAddresses {
		if host, err = ownDevice(s.Sysfs, folder); err != nil {
			return r, err
		}
	}
	conn, connErr := s.Mapper()
	var source blockdev.TableSource
	if connErr == nil {
		source = conn
	}
	_, problem, err := blockdev.ReadStack(s.Sysfs, source, host)
	if err != nil {
		return r, errors.Join(connErr, err)
	}
	if problem != nil {
		r.Problems = append(r.Problems, forRoot(*problem, facts.Mount.Point))
	}
	if s.LacksGate(File{Path: path, Facts: facts}, pin.Wanted(fs.Name, false), "") {
		r.Problems = append(r.Problems, Gateless())
	}
	return r, nil
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
