package extents

import (
	"fmt"
	"slices"
)

// Rule is the stable name of a rule that an image must obey to be mappable.
// Scripts rely on the names; they never change their meaning.
type Rule string

// The rules, in the order in which `dmloop check` reports them.
const (
	NotRegular        Rule = "not-regular"
	Empty             Rule = "empty"
	SizeUnaligned     Rule = "size-unaligned"
	UnsupportedFS     Rule = "unsupported-fs"
	Hole              Rule = "hole"
	Unwritten         Rule = "unwritten"
	Delalloc          Rule = "delalloc"
	Unknown           Rule = "unknown"
	Shared            Rule = "shared"
	Encoded           Rule = "encoded"
	Encrypted         Rule = "encrypted"
	Inline            Rule = "inline"
	Tail              Rule = "tail"
	NotAligned        Rule = "not-aligned"
	Compressed        Rule = "compressed"
	Verity            Rule = "verity"
	DAX               Rule = "dax"
	DataJournal       Rule = "data-journal"
	Realtime          Rule = "realtime"
	MultiDevice       Rule = "multi-device"
	OutOfRange        Rule = "out-of-range"
	Overlap           Rule = "overlap"
	Unstable          Rule = "unstable"
	DirtyCache        Rule = "dirty-cache"
	OpenElsewhere     Rule = "open-elsewhere"
	ActiveSwap        Rule = "active-swap"
	SealCorrupt       Rule = "seal-corrupt"
	Unproven          Rule = "unproven"
	BtrfsCOW          Rule = "btrfs-cow"
	BtrfsProfile      Rule = "btrfs-profile"
	Unsealed          Rule = "unsealed"
	Unpinnable        Rule = "unpinnable"
	MountedDirectly   Rule = "mounted-directly"
	UnresolvableStack Rule = "unresolvable-stack"
	Indirect          Rule = "indirect"
	TooManyExtents    Rule = "too-many-extents"
)

// A RuleMeaning says what breaks a rule, as the end of "an image is refused when ...".
type RuleMeaning struct {
	Rule    Rule
	Meaning string
}

// Rules lists all rules with what breaks each, in the order of a report.
func Rules() []RuleMeaning { return slices.Clone(meanings) }

// Problem is one reason why an image cannot be mapped as it is.
type Problem struct {
	Rule    Rule
	Offset  Bytes  // first byte of the file concerned; 0 when it is the whole file
	Length  Bytes  // bytes concerned from Offset; 0 when it is the whole file
	Message string // what is wrong
	Places  int    // how many places it sums up; 0 when it is about one, or the whole file
	Total   Bytes  // their bytes, where it sums up places
	Remedy  Remedy // what to do about it, beside what is usual for the rule
}

// String returns the message with the rule's name, as error output shows it.
func (p Problem) String() string { return fmt.Sprintf("%s (%s)", p.Message, p.Rule) }

// Way names something that can be done about a problem. The words are of whoever prints
// them, who knows the commands to name.
type Way string

// Remedy is a way out of a problem and what its words need beside the image's path. The
// zero Remedy is whatever is usual for the rule.
type Remedy struct {
	Way       Way
	Name      string // a path, a device, a name: what it is depends on the way
	Low, High Bytes  // numbers, likewise; 0 when the way needs none
}

// Of returns the remedy with a name.
func (r Remedy) Of(name string) Remedy { r.Name = name; return r }

// At returns the remedy with its numbers.
func (r Remedy) At(low, high Bytes) Remedy { r.Low, r.High = low, high; return r }

var meanings = []RuleMeaning{
	{NotRegular, "it is a directory, a device, a FIFO, or its path has a symbolic link that a stranger could have put there"},
	{Empty, "it has no bytes"},
	{SizeUnaligned, "its size, or the start or end of the part that is asked for, is not a multiple of the file system's block, or of the logical block of a device below"},
	{UnsupportedFS, "its file system is not ext4, xfs, f2fs, btrfs, vfat, exfat or ntfs3, has no block device of its own, or is mounted with an option under which its blocks are not what a crash leaves"},
	{Hole, "a part has no block"},
	{Unwritten, "a part is allocated and was never written: the disk holds old data there"},
	{Delalloc, "data in memory has no block yet"},
	{Unknown, "the kernel does not say where a part lies, or its list makes no sense"},
	{Shared, "another file, a snapshot or another part of the file has the same blocks"},
	{Encoded, "the file system stores a part in another form"},
	{Encrypted, "the file system encrypts it (fscrypt)"},
	{Inline, "its data lies among metadata"},
	{Tail, "its last block holds data of other files"},
	{NotAligned, "a part does not begin and end on blocks of the file system or the device"},
	{Compressed, "the file system may compress it (chattr +c)"},
	{Verity, "fs-verity seals it"},
	{DAX, "it is accessed as memory"},
	{DataJournal, "ext4 writes its data through the journal: chattr +j, the mount option, or tune2fs -o journal_data"},
	{Realtime, "it lies on the real-time device of xfs"},
	{MultiDevice, "its file system keeps data on several devices"},
	{OutOfRange, "a part lies beyond the end of its device"},
	{Overlap, "another live mapping, or any other device-mapper device, lies on the same blocks"},
	{Unstable, "two readings in a row differ"},
	{DirtyCache, "changed pages in memory cannot be flushed"},
	{OpenElsewhere, "somebody else keeps it open or mapped for more than a few seconds, and is named where that can be seen"},
	{ActiveSwap, "the kernel uses it as swap"},
	{SealCorrupt, "it is marked as sealed and its record does not hold, or it is to be unsealed and only looks sealed"},
	{Unproven, "on vfat, exfat and ntfs3: the layout names blocks that were never written, and its seal does not say that dmloop wrote every byte once"},
	{BtrfsCOW, "on btrfs: it is copied on write"},
	{BtrfsProfile, "on btrfs: the profile of its data is not single"},
	{Unsealed, "it has to be sealed: on btrfs, vfat, exfat and ntfs3, or to be held as swap"},
	{Unpinnable, "nothing can keep its blocks in place well enough; its pin needs opens to be denied, which the kernel cannot do; it is sealed, and users other than root may open it"},
	{MountedDirectly, "its file system is mounted straight from a disk or partition"},
	{UnresolvableStack, "the device of its file system has targets other than linear and striped, or is changing"},
	{Indirect, "ext4 keeps it in indirect blocks"},
	{TooManyExtents, "it lies in more pieces than the limit"},
}

// Refusal is the error of a file that breaks rules.
type Refusal struct {
	Path     string    // of the file; may be empty
	Problems []Problem // at least one
}

// Refuse returns the refusal of the file at path for these problems.
func Refuse(path string, problems ...Problem) *Refusal { return &Refusal{path, problems} }

func (r *Refusal) Error() string {
	text := r.Problems[0].String()
	if r.Path != "" {
		text = r.Path + ": " + text
	}
	if more := len(r.Problems) - 1; more > 0 {
		text += fmt.Sprintf(", and %d more problems", more)
	}
	return text
}
