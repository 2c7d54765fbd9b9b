package image

import (
	"fmt"
	"os"

	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/inode"

	"golang.org/x/sys/unix"
)

// FolderFacts reads what the files of a folder have in common: their file system, its mount, and
// what a file that is made in the folder takes over from it. Nothing is known of any file.
func FolderFacts(folder *os.File) (Facts, error) {
	i := &Image{file: folder}
	facts, err := i.common()
	if err != nil {
		return Facts{}, err
	}
	if err := i.readAttributes(&facts); err != nil {
		return Facts{}, i.wrap(err)
	}
	facts.Devices.Count = 1
	_, asleep := blockdev.Suspended("/sys", facts.Device) // then reading the device would wait, and images there are refused for that
	switch facts.Kind() {
	case "ext4":
		facts.DataJournal, err = ext4DataJournal(facts)
		facts.NoExtents = !asleep && ext4LacksExtents(facts.Mount, facts.Device)
	case "xfs":
		facts.Reflink, err = i.xfsReflink()
		if has, asked := i.xfsHasRealtime(); asked == nil && !has {
			facts.XFlags &^= inode.XRTInherit // which nothing comes of
		}
	case "f2fs":
		if !asleep {
			facts.Devices = f2fsDevices(facts.Mount, facts.Device)
		}
	case "btrfs":
		facts.Reflink = true
		facts.Devices.Count, err = i.btrfsDevices()
	}
	return facts, err
}

// FolderProblems returns what keeps every image that is made in the folder at path from being
// mapped, as far as FolderFacts tells.
func (f Facts) FolderProblems(path string) []extents.Problem {
	var problems []extents.Problem
	add := func(rule extents.Rule, remedy extents.Remedy, message string) {
		problems = append(problems, extents.Problem{Rule: rule, Message: message, Remedy: remedy})
	}
	if reason, remedy := f.unsupportedReason(); reason != "" {
		add(extents.UnsupportedFS, remedy, reason)
	}
	if f.InodeFlags&inode.Encrypt != 0 || f.Attributes&unix.STATX_ATTR_ENCRYPTED != 0 {
		add(extents.Encrypted, usual, "the file system encrypts the folder, and each file that is made in it")
	}
	switch cause := journalCauses[f.DataJournal]; f.DataJournal {
	case "":
	case JournalAttribute:
		add(extents.DataJournal, advice.ClearFolderFlag.Of(path), "the folder has the attribute j, and so gets each file that is made in it: ext4 writes its data through the journal")
	default:
		add(extents.DataJournal, cause.remedy.Of(f.Mount.Source), fmt.Sprintf("ext4 writes the data of all files through its journal (%s)", cause.what))
	}
	if f.XFlags&inode.XDAX != 0 || f.Mount.HasSuperOption("dax=always") || f.Mount.HasSuperOption("dax") {
		add(extents.DAX, advice.ClearFolderDAX.Of(path), "files that are made in the folder are accessed as memory (DAX)")
	}
	if f.Kind() == "xfs" && f.XFlags&inode.XRTInherit != 0 {
		add(extents.Realtime, advice.ClearFolderRealtime.Of(path), "files that are made in the folder lie on the real-time device of xfs")
	}
	if f.NoExtents {
		add(extents.Indirect, advice.AddExtents.Of(f.Mount.Source), "ext4 keeps all files in indirect blocks instead of extents")
	}
	return append(problems, f.deviceProblems()...)
}

// Trait is what files take over from their folder and what is no obstacle to mapping them.
type Trait string

// The traits.
const (
	TraitProject  Trait = "project"  // they count toward the quota of the folder's project
	TraitCasefold Trait = "casefold" // their names are the same in upper and lower case
	TraitCompress Trait = "compress" // they may be compressed, but for those that dmloop makes
)

// Traits lists what files take over from the folder that the facts are of.
func (f Facts) Traits() (traits []Trait) {
	if f.XFlags&inode.XProjInherit != 0 {
		traits = append(traits, TraitProject)
	}
	if f.InodeFlags&inode.Casefold != 0 {
		traits = append(traits, TraitCasefold)
	}
	if f.InodeFlags&inode.Compress != 0 {
		traits = append(traits, TraitCompress)
	}
	return traits
}
