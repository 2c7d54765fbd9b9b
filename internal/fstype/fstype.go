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

	// Bare says that a file has neither flags nor extended attributes that could be relied on,
	// and perhaps an inode number that is made up each time it is read into memory. So only sealed images are mapped from there, the kernel's claim is all that
	// pins them, nothing but the administrator's word says that they are sealed, and no
	// manifest of a boot can name them. Files without a name cannot be made.
	Bare bool
	// MountMode says that owner and mode of every file are those of the mount.
	MountMode bool
	// Unproven says that the layout names blocks that were never written, as written ones:
	// every byte of an image has to be written by dmloop once, and its seal says so.
	Unproven bool
	// Units says that a file is allocated, read and addressed in the units of FIGETBSZ; what
	// statfs(2) calls a block is a cluster of them.
	Units bool
	// MaxFile is the size that a file can have at most, in bytes; 0 where it does not matter.
	MaxFile int64
}

// Superblock says where on a device a file system tells its name, UUID and label, in bytes.
type Superblock struct {
	Magic           []byte
	MagicAt, UUIDAt int
	LabelAt, Label  int  // where the label begins, and how long it can be; 0 where it is not in the superblock
	UTF16           bool // the label is UTF-16, little-endian
	Serial          int  // what stands for the UUID is a number of so many bytes, little-endian, 4 or 8; 0: a UUID of 16
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
	{
		// A file that is longer than what was written of it is filled with zeros by the kernel
		// (fat_cont_expand in fs/fat/file.c), which a power cut may come before: the disk keeps
		// no account of it.
		Name: "vfat", Magic: unix.MSDOS_SUPER_MAGIC, Immutable: guard.GradeUnsafe, Bare: true, MountMode: true, Unproven: true, Units: true, MaxFile: 1<<32 - 1,
		// include/uapi/linux/msdos_fs.h, struct fat_boot_sector of FAT32: fs_type at 82, vol_id at 67, vol_label at 71.
		Superblock: Superblock{Magic: []byte("FAT32   "), MagicAt: 82, UUIDAt: 67, LabelAt: 71, Label: 11, Serial: 4},
	},
	{
		// valid_size of the directory entry says how much was written; FIBMAP does not mind it.
		Name: "exfat", Magic: unix.EXFAT_SUPER_MAGIC, Immutable: guard.GradeUnsafe, Bare: true, MountMode: true, Unproven: true, Units: true,
		// fs/exfat/exfat_raw.h, struct boot_sector: fs_name at 3, vol_serial at 100; the label is a directory entry.
		Superblock: Superblock{Magic: []byte("EXFAT   "), MagicAt: 3, UUIDAt: 100, Serial: 4},
	},
	{
		// Flags are not kept, and attributes are such as Windows can write; owner and mode are among
		// them (ntfs_save_wsl_perm in fs/ntfs3/xattr.c). As exFAT it has a size up to which a file was written (i_valid in fs/ntfs3), and blocks beyond it.
		Name: "ntfs3", Magic: ntfs3Magic, Immutable: guard.GradeUnsafe, Bare: true, Unproven: true,
		// fs/ntfs3/ntfs.h, struct NTFS_BOOT: system_id at 3, serial_num at 72; the label is a file.
		Superblock: Superblock{Magic: []byte("NTFS    "), MagicAt: 3, UUIDAt: 72, Serial: 8},
	},
}

// ntfs3Magic is s_magic of fs/ntfs3/super.c, the letters ntfs; linux/magic.h has no name for it.
const ntfs3Magic = 0x7366746e

// fat1x is where FAT12 and FAT16, which the kernel calls vfat too, have what FAT32 has
// elsewhere: fs_type at 54, vol_id at 39, vol_label at 43.
var fat1x = []Superblock{
	{Magic: []byte("FAT16   "), MagicAt: 54, UUIDAt: 39, LabelAt: 43, Label: 11, Serial: 4},
	{Magic: []byte("FAT12   "), MagicAt: 54, UUIDAt: 39, LabelAt: 43, Label: 11, Serial: 4},
}

// Superblocks lists the forms that the superblock can have.
func (t Type) Superblocks() []Superblock {
	if t.Magic == unix.MSDOS_SUPER_MAGIC {
		return append([]Superblock{t.Superblock}, fat1x...)
	}
	return []Superblock{t.Superblock}
}

// OfMagic returns the file system that statfs(2) calls so, the zero value when dmloop does
// not know it.
func OfMagic(magic uint32) Type {
	if i := slices.IndexFunc(types, func(t Type) bool { return t.Magic == magic }); i >= 0 {
		return types[i]
	}
	return Type{}
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
