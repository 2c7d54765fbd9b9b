package blockdev

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"

	"dmloop/internal/fstype"
)

// Filesystem is what a superblock says.
type Filesystem struct {
	Type  string // as mount(2) takes it
	UUID  string // as blkid prints it: lower-case with dashes, or a serial number (1A2B-3C4D) where there is no more
	Label string // empty when it has none
}

// headSize is how much of a device's beginning identify wants to see.
const headSize = 65536 + 4096

// ext4 has this bit in s_feature_incompat when the device is only a journal.
const (
	ext4Incompat   = 1024 + 0x60
	ext4JournalDev = 0x0008
)

// identify reads the superblock at the beginning of a device.
func identify(head []byte) (Filesystem, bool) {
	for _, t := range fstype.All() {
		for _, s := range t.Superblocks() {
			if len(head) < s.UUIDAt+16 || len(head) < s.MagicAt+len(s.Magic) || !bytes.Equal(head[s.MagicAt:s.MagicAt+len(s.Magic)], s.Magic) {
				continue
			}
			if t.Name == "ext4" && binary.LittleEndian.Uint32(head[ext4Incompat:])&ext4JournalDev != 0 {
				continue
			}
			return Filesystem{Type: t.Name, UUID: uuid(head[s.UUIDAt:], s.Serial), Label: label(head, s)}, true
		}
	}
	return Filesystem{}, false
}

// uuid prints a UUID, or the serial number of serial bytes that stands for it.
func uuid(b []byte, serial int) string {
	switch serial {
	case 4:
		n := binary.LittleEndian.Uint32(b)
		return fmt.Sprintf("%04X-%04X", n>>16, n&0xffff)
	case 8:
		return fmt.Sprintf("%016X", binary.LittleEndian.Uint64(b))
	}
	return FormatUUID([16]byte(b))
}

// label reads the label, up to its first zero.
func label(head []byte, s fstype.Superblock) string {
	if s.Label == 0 || len(head) < s.LabelAt+s.Label {
		return ""
	}
	b := head[s.LabelAt : s.LabelAt+s.Label]
	if s.Serial != 0 { // filled up with blanks, or said to be none
		text := strings.TrimRight(string(b), " ")
		if text == "NO NAME" {
			return ""
		}
		return text
	}
	if !s.UTF16 {
		text, _, _ := bytes.Cut(b, []byte{0})
		return string(text)
	}
	var units []uint16
	for ; len(b) >= 2 && (b[0] != 0 || b[1] != 0); b = b[2:] {
		units = append(units, binary.LittleEndian.Uint16(b))
	}
	return string(utf16.Decode(units))
}

// FormatUUID prints the 16 bytes of a file system's UUID as blkid does: lower-case, with
// dashes.
func FormatUUID(b [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
