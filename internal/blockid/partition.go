package blockid

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// errNoTable says that a disk has no partition table that is understood.
var errNoTable = errors.New("no GPT or MBR partition table")

// partitionUUID returns what the kernel and udev call PARTUUID: of a GPT the unique
// GUID of the entry, of an MBR the disk's signature and the partition's number.
func partitionUUID(disk io.ReaderAt, block int64, number int) (string, error) {
	if number < 1 || number > 1<<16 {
		return "", fmt.Errorf("impossible partition number %d", number)
	}
	header := make([]byte, 92)
	if _, err := disk.ReadAt(header, block); err != nil {
		return "", err
	}
	if string(header[:8]) == "EFI PART" {
		return gptUUID(disk, header, block, number)
	}
	mbr := make([]byte, 512)
	if _, err := disk.ReadAt(mbr, 0); err != nil {
		return "", err
	}
	if mbr[510] != 0x55 || mbr[511] != 0xaa {
		return "", errNoTable
	}
	return fmt.Sprintf("%08x-%02x", binary.LittleEndian.Uint32(mbr[440:]), number), nil
}

// gptUUID reads entry number of a GPT (UEFI specification, 5.3): the header has the
// entries' first block at 72, their count at 80 and size at 84; an entry has its
// unique GUID at 16.
func gptUUID(disk io.ReaderAt, header []byte, block int64, number int) (string, error) {
	first, count, size := binary.LittleEndian.Uint64(header[72:]), binary.LittleEndian.Uint32(header[80:]), binary.LittleEndian.Uint32(header[84:])
	if size < 128 || size > 4096 || first > 1<<40 || uint32(number) > count {
		return "", errNoTable
	}
	entry := make([]byte, 32)
	if _, err := disk.ReadAt(entry, int64(first)*block+int64(number-1)*int64(size)); err != nil {
		return "", err
	}
	return guid(entry[16:32]), nil
}
