package image

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"dmloop/dmtable"
)

// journalOption is how ext4 names data journalling in both lists of options.
const journalOption = "data=journal"

// ext4DataJournal returns what makes ext4 write the file's data through its
// journal, from where it would be written over the raw blocks later: the inode's
// own attribute, the mount option, or a default in the superblock (tune2fs -o
// journal_data), which only /proc/fs/ext4/DEVICE/options shows (tried on 6.18).
func ext4DataJournal(facts Facts) (JournalCause, error) {
	if facts.InodeFlags&flagJournalData != 0 {
		return JournalAttribute, nil
	}
	if facts.Mount.HasSuperOption(journalOption) {
		return JournalMount, nil
	}
	name, err := kernelName(facts.Device)
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

// kernelName returns the kernel's name of a block device, such as "dm-0".
func kernelName(dev dmtable.Device) (string, error) {
	target, err := os.Readlink(filepath.Join("/sys/dev/block", dev.String()))
	if err != nil {
		return "", err
	}
	return filepath.Base(target), nil
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
