package extents

import "fmt"

// Flags are the FIEMAP_EXTENT_* bits of one row, as the kernel returned them
// (linux/fiemap.h; the bits have not changed since 2.6.33).
type Flags uint32

// The flags of linux/fiemap.h. The kernel's rule that one bit sets another
// (delalloc sets unknown, encrypted sets encoded, inline and tail set
// not-aligned) is not kept by all file systems, so each bit is judged alone.
const (
	FlagLast       Flags = 0x0001 // last extent of the file
	FlagUnknown    Flags = 0x0002 // location unknown
	FlagDelalloc   Flags = 0x0004 // not allocated yet
	FlagEncoded    Flags = 0x0008 // compressed, or not readable while unmounted
	FlagEncrypted  Flags = 0x0080 // encrypted by the file system; ext4 never sets it
	FlagNotAligned Flags = 0x0100 // offsets may be off block borders
	FlagInline     Flags = 0x0200 // data lies among metadata
	FlagTail       Flags = 0x0400 // several files in one block
	FlagUnwritten  Flags = 0x0800 // allocated, reads as zeros through the file system, anything on the disk
	FlagMerged     Flags = 0x1000 // made of single blocks by the kernel, harmless
	FlagShared     Flags = 0x2000 // another file or snapshot has the same blocks
)

// flagNames has the names that filefrag(8) prints, in the order of the bits.
var flagNames = []struct {
	flag Flags
	name string
}{
	{FlagLast, "last"},
	{FlagUnknown, "unknown_loc"},
	{FlagDelalloc, "delalloc"},
	{FlagEncoded, "encoded"},
	{FlagEncrypted, "encrypted"},
	{FlagNotAligned, "not_aligned"},
	{FlagInline, "inline"},
	{FlagTail, "tail_packed"},
	{FlagUnwritten, "unwritten"},
	{FlagMerged, "merged"},
	{FlagShared, "shared"},
}

const (
	knownFlags = FlagLast | FlagUnknown | FlagDelalloc | FlagEncoded | FlagEncrypted | FlagNotAligned |
		FlagInline | FlagTail | FlagUnwritten | FlagMerged | FlagShared
	// harmlessFlags say how the kernel counts rows, nothing about the data.
	harmlessFlags = FlagLast | FlagMerged
)

// Names returns the stable lower-case names of the flags, in the order of the
// bits and as filefrag(8) prints them. All bits that linux/fiemap.h does not
// name make one last element in hex ("0x4000"). It is empty, not nil, for 0.
func (f Flags) Names() []string {
	names := make([]string, 0, 4)
	for _, n := range flagNames {
		if f&n.flag != 0 {
			names = append(names, n.name)
		}
	}
	if rest := f &^ knownFlags; rest != 0 {
		names = append(names, fmt.Sprintf("0x%x", uint32(rest)))
	}
	return names
}

// judged returns the flags that say something about the data, so that two rows
// which differ only in the others can be one.
func (f Flags) judged() Flags { return f &^ harmlessFlags }
