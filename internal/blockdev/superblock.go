package blockdev

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Filesystem is what a superblock says.
type Filesystem struct {
	Type string // as mount(2) takes it
	UUID string // lower-case, with dashes
}

// headSize is how much of a device's beginning identify wants to see.
const headSize = 65536 + 4096

// A signature is where a file system's magic number and UUID lie.
type signature struct {
	name    string
	magic   []byte
	magicAt int
	uuidAt  int
}

var signatures = []signature{
	// fs/ext4/ext4.h, struct ext4_super_block at 1024: s_magic at 0x38, s_uuid at 0x68.
	{"ext4", []byte{0x53, 0xef}, 1024 + 0x38, 1024 + 0x68},
	// fs/xfs/libxfs/xfs_format.h, struct xfs_dsb: sb_magicnum at 0, sb_uuid at 32.
	{"xfs", []byte("XFSB"), 0, 32},
	// include/linux/f2fs_fs.h, struct f2fs_super_block at 1024: magic at 0, uuid at 108.
	{"f2fs", []byte{0x10, 0x20, 0xf5, 0xf2}, 1024, 1024 + 108},
	// include/uapi/linux/btrfs_tree.h, struct btrfs_super_block at 65536: fsid at 0x20, magic at 0x40.
	{"btrfs", []byte("_BHRfS_M"), 65536 + 0x40, 65536 + 0x20},
}

// ext4 has this bit in s_feature_incompat when the device is only a journal.
const (
	ext4Incompat   = 1024 + 0x60
	ext4JournalDev = 0x0008
)

// identify reads the superblock at the beginning of a device.
func identify(head []byte) (Filesystem, bool) {
	for _, s := range signatures {
		if len(head) < s.uuidAt+16 || len(head) < s.magicAt+len(s.magic) || !bytes.Equal(head[s.magicAt:s.magicAt+len(s.magic)], s.magic) {
			continue
		}
		if s.name == "ext4" && binary.LittleEndian.Uint32(head[ext4Incompat:])&ext4JournalDev != 0 {
			continue
		}
		return Filesystem{Type: s.name, UUID: FormatUUID([16]byte(head[s.uuidAt:]))}, true
	}
	return Filesystem{}, false
}

// FormatUUID prints the 16 bytes of a file system's UUID as blkid does: lower-case, with
// dashes.
func FormatUUID(b [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
