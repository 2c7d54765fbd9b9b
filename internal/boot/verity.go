package boot

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"dmloop/dmtable"
)

// VeritySuperblock is what veritysetup format writes before the hash tree
// (cryptsetup, lib/verity/verity.c, struct verity_sb).
type VeritySuperblock struct {
	HashType      uint32
	Algorithm     string
	DataBlockSize uint32
	HashBlockSize uint32
	DataBlocks    uint64
	Salt          []byte
}

// veritySize is the superblock's length: signature 8, version 4, hash type 4, UUID
// 16, algorithm 32, block sizes 4 and 4, blocks 8, salt size 2, padding 6, salt 256,
// padding 168.
const veritySize = 512

// ParseVerity reads a superblock.
func ParseVerity(b []byte) (VeritySuperblock, error) {
	if len(b) < veritySize || !bytes.Equal(b[:8], []byte("verity\x00\x00")) {
		return VeritySuperblock{}, errors.New("no dm-verity superblock there")
	}
	le := binary.LittleEndian
	s := VeritySuperblock{
		HashType: le.Uint32(b[12:]), DataBlockSize: le.Uint32(b[64:]), HashBlockSize: le.Uint32(b[68:]), DataBlocks: le.Uint64(b[72:]),
	}
	algorithm, _, _ := bytes.Cut(b[32:64], []byte{0})
	s.Algorithm = string(algorithm)
	salt := int(le.Uint16(b[80:]))
	switch {
	case le.Uint32(b[8:]) != 1 || s.HashType > 1:
		return VeritySuperblock{}, errors.New("unknown version of dm-verity")
	case s.Algorithm == "" || strings.Trim(s.Algorithm, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "":
		return VeritySuperblock{}, fmt.Errorf("hash algorithm %q", s.Algorithm)
	case !blockSize(s.DataBlockSize) || !blockSize(s.HashBlockSize) || s.DataBlocks == 0 || s.DataBlocks > 1<<45 || salt > 256:
		return VeritySuperblock{}, errors.New("damaged dm-verity superblock")
	}
	s.Salt = bytes.Clone(b[88 : 88+salt])
	return s, nil
}

func blockSize(n uint32) bool { return n >= 512 && n <= 512<<10 && n&(n-1) == 0 }

// row returns the verity target over device, which has size sectors.
func (v *Verity) row(device string, size dmtable.Sectors) (dmtable.Row, error) {
	s := v.Superblock
	if err := dmtable.CheckName(v.Name); err != nil {
		return dmtable.Row{}, err
	}
	if raw, err := hex.DecodeString(v.RootHash); err != nil || len(raw) < 16 {
		return dmtable.Row{}, fmt.Errorf("%q is not a root hash in hexadecimal", v.RootHash)
	}
	if v.HashOffset < 0 || v.HashOffset%int64(s.HashBlockSize) != 0 {
		return dmtable.Row{}, fmt.Errorf("the hash offset %d is not a multiple of %d", v.HashOffset, s.HashBlockSize)
	}
	length := dmtable.Sectors(s.DataBlocks * uint64(s.DataBlockSize) / dmtable.SectorSize)
	if length > size || dmtable.Sectors(v.HashOffset/dmtable.SectorSize) < length {
		return dmtable.Row{}, errors.New("data and hash tree do not fit in the image one after the other")
	}
	hashStart := (v.HashOffset + veritySize + int64(s.HashBlockSize) - 1) / int64(s.HashBlockSize)
	salt := "-"
	if len(s.Salt) > 0 {
		salt = hex.EncodeToString(s.Salt)
	}
	args := fmt.Sprintf("%d %s %s %d %d %d %d %s %s %s", s.HashType, device, device, s.DataBlockSize, s.HashBlockSize,
		s.DataBlocks, hashStart, s.Algorithm, strings.ToLower(v.RootHash), salt)
	return dmtable.Row{Length: length, Target: "verity", Args: args}, nil
}
