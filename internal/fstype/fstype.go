// Package fstype has, in one table, what dmloop knows of each file system that images lie on.
package fstype

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"dmloop/guard"
)

// Type is a file system as a host of images. The zero value is one that dmloop does not
// know: nothing on it can be mapped.
type Type struct {
	Name  string // as mountinfo has it, such as "ext4"
	Magic uint32 // as statfs(2) has it (linux/magic.h); ext2, ext3 and ext4 have the same

	Superblock Superblock

	// OwnAddresses says that FIEMAP speaks of a space of the file system's own, and that
	// files have an anonymous device number: package btrfs translates.
	OwnAddresses bool

	// Immutable is what the immutable flag is worth once a write lease has shown that nobody
	// else has the file open. Where files can share blocks it is worth GradeGuarded at most:
	// FICLONE from an immutable file shares its extents.
	Immutable guard.Grade

	// Pin is a flag that keeps the file system's own movers away, or empty. With PinNeeded
	// nothing else is worth anything without it.
	Pin       guard.PinKind
	PinNeeded bool

	// SwapPins says that swapon sets Pin, also where nobody else can, and that swapoff clears it.
	SwapPins bool
	// SwapMoves says that swapon may move the file's blocks, each time: a claim must not be
	// taken on the image of a live mapping, and no boot finds a sealed image where it was saved.
	SwapMoves bool

	// SyncAttributes says that an attribute may reach the disk after a flag that is set
	// later, unless there is an fsync between them.
	SyncAttributes bool
	// BufferedFill says that holes are filled by buffered writes: a block is given to the
	// file before a direct write has filled it, and a kill in between leaves somebody's old
	// data there (seen on f2fs, Linux 6.1).
	BufferedFill bool
	// NoCopyOnWrite says that an image needs the attribute C, which only an empty file takes.
	NoCopyOnWrite bool
}

// Superblock says where on a device a file system tells its name, UUID and label, in bytes.
type Superblock struct {
	Magic           []byte
	MagicAt, UUIDAt int
	LabelAt, Label  int  // where the label begins, and how long it can be
	UTF16           bool // the label is UTF-16, little-endian
}

var types = []Type{
	{
		Name: "ext4", Magic: unix.EXT4_SUPER_MAGIC, Immutable: guard.GradeKernel,
		// fs/ext4/ext4.h, struct ext4_super_block at 1024: s_magic at 0x38, s_uuid at 0x68, s_volume_name at 0x78.
		Superblock: Superblock{Magic: []byte{0x53, 0xef}, MagicAt: 1024 + 0x38, UUIDAt: 1024 + 0x68, LabelAt: 1024 + 0x78, Label: 16},
	},
	{
		Name: "xfs", Magic: unix.XFS_SUPER_MAGIC, Immutable: guard.GradeKernel,
		Pin: guard.PinNoDefrag, // xfs_fsr honours it
		// fs/xfs/libxfs/xfs_format.h, struct xfs_dsb: sb_magicnum at 0, sb_uuid at 32, sb_fname at 108.
		Superblock: Superblock{Magic: []byte("XFSB"), UUIDAt: 32, LabelAt: 108, Label: 12},
	},
	{
		// The garbage collector may drop the pin, which it asks for alone
		// (f2fs_gc_pinned_control in fs/f2fs/gc.c). swapon sets it (f2fs_swap_activate) and
		// moves a file that does not fill its sections (check_swap_activate in
		// fs/f2fs/data.c, seen on 6.12 and 7.3).
		Name: "f2fs", Magic: unix.F2FS_SUPER_MAGIC, Immutable: guard.GradeGuarded,
		Pin: guard.PinF2FS, PinNeeded: true, SwapPins: true, SwapMoves: true, SyncAttributes: true, BufferedFill: true,
		// include/linux/f2fs_fs.h, struct f2fs_super_block at 1024: magic at 0, uuid at 108, volume_name at 124.
		Superblock: Superblock{Magic: []byte{0x10, 0x20, 0xf5, 0xf2}, MagicAt: 1024, UUIDAt: 1024 + 108, LabelAt: 1024 + 124, Label: 1024, UTF16: true},
	},
	{
		// Balance and snapshot ignore the immutable flag.
		Name: "btrfs", Magic: unix.BTRFS_SUPER_MAGIC, Immutable: guard.GradeUnsafe, OwnAddresses: true, NoCopyOnWrite: true,
		// include/uapi/linux/btrfs_tree.h, struct btrfs_super_block at 65536: fsid at 0x20, magic at 0x40, label at 0x12b.
		Superblock: Superblock{Magic: []byte("_BHRfS_M"), MagicAt: 65536 + 0x40, UUIDAt: 65536 + 0x20, LabelAt: 65536 + 0x12b, Label: 256},
	},
}

// Of returns the file system of this name, the zero value when dmloop does not know it.
func Of(name string) Type {
	if i := slices.IndexFunc(types, func(t Type) bool { return t.Name == name }); i >= 0 {
		return types[i]
	}
	return Type{}
}

// All lists the file systems that dmloop knows.
func All() []Type { return slices.Clone(types) }

// Known reports whether dmloop knows the file system.
func (t Type) Known() bool { return t.Name != "" }

// Names lists the file systems that dmloop knows, for people.
func Names() string {
	var names []string
	for _, t := range types {
		names = append(names, t.Name)
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " and " + names[last]
}
