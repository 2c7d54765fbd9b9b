package image

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"dmloop/dmtable"
	"dmloop/internal/blockdev"
	"dmloop/internal/inode"
)

// Places in struct ext4_super_block (fs/ext4/ext4.h), which lies 1024 bytes into the
// device, and a bit there.
const (
	ext4SuperOffset    = 1024
	ext4MagicOffset    = 0x38
	ext4IncompatOffset = 0x60
	ext4Extents        = 0x40 // EXT4_FEATURE_INCOMPAT_EXTENTS
)

// ext4LacksExtents reports whether the file system was made without the feature that
// chattr +e needs, as ext2 and ext3 were. Without the right to read the device that stays unknown.
func ext4LacksExtents(m Mount, dev dmtable.Device) bool {
	f, err := openDevice(m.Source, dev)
	if err != nil {
		return false
	}
	defer f.Close()
	super := make([]byte, 1024)
	if _, err := f.ReadAt(super, ext4SuperOffset); err != nil || binary.LittleEndian.Uint16(super[ext4MagicOffset:]) != 0xef53 {
		return false
	}
	return binary.LittleEndian.Uint32(super[ext4IncompatOffset:])&ext4Extents == 0
}

// journalOption is how ext4 names data journalling in both lists of options.
const journalOption = "data=journal"

// ext4DataJournal returns what makes ext4 write the file's data through its
// journal, from where it would be written over the raw blocks later: the inode's
// own attribute, the mount option, or a default in the superblock (tune2fs -o
// journal_data), which only /proc/fs/ext4/DEVICE/options shows (tried on 6.18).
func ext4DataJournal(facts Facts) (JournalCause, error) {
	if facts.InodeFlags&inode.JournalData != 0 {
		return JournalAttribute, nil
	}
	if facts.Mount.HasSuperOption(journalOption) {
		return JournalMount, nil
	}
	name, err := blockdev.KernelName("/sys", facts.Device)
	if err != nil {
		return "", err
	}
	f, err := os.Open(filepath.Join("/proc/fs/ext4", name, "options"))
	if err != nil {
		return "", fmt.Errorf("cannot tell whether ext4 journals data: %w", err)
	}
	defer f.Close()
	journals, err := hasLine(f, journalOption)
	if err != nil {
		return "", fmt.Errorf("%s: %w", f.Name(), err)
	}
	if journals {
		return JournalSuperblock, nil
	}
	return "", nil
}

// hasLine reports whether one of the lines of r is exactly line.
func hasLine(r io.Reader, line string) (bool, error) {
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		if scanner.Text() == line {
			return true, nil
		}
	}
	return false, scanner.Err()
}
