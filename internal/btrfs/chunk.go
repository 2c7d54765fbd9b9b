// Package btrfs translates the addresses that btrfs gives to its extents, which
// lie in a space of its own, into offsets on the device. It reads the chunk tree
// and never writes.
package btrfs

import (
	"encoding/binary"
	"fmt"
	"slices"

	"dmloop/extents"
)

// Chunk maps a range of btrfs's address space to ranges of devices.
type Chunk struct {
	Logical extents.Bytes // first address
	Length  extents.Bytes
	Type    Type
	Stripes []Stripe // one for a single profile
}

// Stripe is one range of a chunk on a device.
type Stripe struct {
	Device uint64        // devid of the file system
	Offset extents.Bytes // on that device
}

// Type holds the BTRFS_BLOCK_GROUP_* bits of a chunk (linux/btrfs_tree.h): what it
// holds, and the profile, which is single when no bit of profileBits is set.
type Type uint64

// The bits of a Type.
const (
	Data     Type = 1 << 0
	System   Type = 1 << 1
	Metadata Type = 1 << 2
)

// profileNames has the bits of the profiles and the names that btrfs(8) prints.
var profileNames = []struct {
	bit  Type
	name string
}{
	{1 << 3, "RAID0"}, {1 << 4, "RAID1"}, {1 << 5, "DUP"}, {1 << 6, "RAID10"}, {1 << 7, "RAID5"},
	{1 << 8, "RAID6"}, {1 << 9, "RAID1C3"}, {1 << 10, "RAID1C4"},
}

// Profile returns the name of the profile: "single", "DUP", "RAID1" and so on,
// or the bits in hex when they are none that dmloop knows.
func (t Type) Profile() string {
	rest := t &^ (Data | System | Metadata)
	if rest == 0 {
		return "single"
	}
	for _, p := range profileNames {
		if rest == p.bit {
			return p.name
		}
	}
	return fmt.Sprintf("profile 0x%x", uint64(rest))
}

func (c Chunk) end() extents.Bytes { return c.Logical + c.Length }

// The item of a chunk, struct btrfs_chunk in linux/btrfs_tree.h, little-endian
// and packed; its address is the offset of the item's key:
//
//	__le64 length, owner, stripe_len, type;      offsets 0, 8, 16, 24
//	__le32 io_align, io_width, sector_size;      offsets 32, 36, 40
//	__le16 num_stripes, sub_stripes;             offsets 44, 46
//	struct { __le64 devid, offset; __u8 dev_uuid[16]; } stripe[num_stripes];
const (
	chunkHead  = 48
	stripeSize = 32
)

// parseChunk reads the item of the chunk at an address.
func parseChunk(logical uint64, b []byte) (Chunk, error) {
	if len(b) < chunkHead {
		return Chunk{}, fmt.Errorf("chunk item of %d bytes, want %d at least", len(b), chunkHead)
	}
	le := binary.LittleEndian
	length, n := le.Uint64(b), int(le.Uint16(b[44:]))
	if len(b) != chunkHead+n*stripeSize || n == 0 {
		return Chunk{}, fmt.Errorf("chunk item of %d bytes for %d stripes", len(b), n)
	}
	if length == 0 || tooFar(logical, length) {
		return Chunk{}, fmt.Errorf("chunk of %d bytes at %d", length, logical)
	}
	c := Chunk{Logical: extents.Bytes(logical), Length: extents.Bytes(length), Type: Type(le.Uint64(b[24:]))}
	for s := b[chunkHead:]; len(s) > 0; s = s[stripeSize:] {
		offset := le.Uint64(s[8:])
		if tooFar(offset, length) {
			return Chunk{}, fmt.Errorf("chunk at %d lies at %d of device %d", logical, offset, le.Uint64(s))
		}
		c.Stripes = append(c.Stripes, Stripe{Device: le.Uint64(s), Offset: extents.Bytes(offset)})
	}
	return c, nil
}

// tooFar reports whether a range ends beyond what a signed offset can hold.
func tooFar(start, length uint64) bool {
	const limit = 1<<63 - 1
	return start > limit || length > limit-start
}

// find returns the chunk that holds an address; chunks are in order of Logical.
func find(chunks []Chunk, at extents.Bytes) (Chunk, bool) {
	i, found := slices.BinarySearchFunc(chunks, at, func(c Chunk, at extents.Bytes) int {
		switch {
		case c.end() <= at:
			return -1
		case c.Logical > at:
			return 1
		}
		return 0
	})
	if !found {
		return Chunk{}, false
	}
	return chunks[i], true
}
