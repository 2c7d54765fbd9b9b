package blockdev

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf16"

	"dmloop/internal/fstype"
)

// Filesystem is what a superblock says.
type Filesystem struct {
	Type  string // as mount(2) takes it
	UUID  string // lower-case, with dashes
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
		s := t.Superblock
		if len(head) < s.UUIDAt+16 || len(head) < s.MagicAt+len(s.Magic) || !bytes.Equal(head[s.MagicAt:s.MagicAt+len(s.Magic)], s.Magic) {
			continue
		}
		if t.Name == "ext4" && binary.LittleEndian.Uint32(head[ext4Incompat:])&ext4JournalDev != 0 {
			continue
		}
		return Filesystem{Type: t.Name, UUID: FormatUUID([16]byte(head[s.UUIDAt:])), Label: label(head, s)}, true
	}
	return Filesystem{}, false
}

// label reads the label, up to its first zero.
func label(head []byte, s fstype.Superblock) string {
	if len(head) < s.LabelAt+s.Label {
		return ""
	}
	b := head[s.LabelAt : s.LabelAt+s.Label]
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
