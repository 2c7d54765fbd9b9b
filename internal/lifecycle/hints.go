package lifecycle

import (
	"fmt"
	"io"
	"strings"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/blockdev"
	"dmloop/internal/image"
	"dmloop/internal/parttable"
)

// betterHints replaces the hints that would lead nowhere, or do harm, because of what
// the file holds: the rules know its size only.
func (v *Survey) betterHints(img *image.Image, o SurveyOptions) {
	size := extents.Bytes(v.Facts.Size)
	for i, p := range v.Problems {
		v.Problems[i].Hint = strings.ReplaceAll(p.Hint, "DEVICE", shellWord(v.Facts.Mount.Source))
		if p.Rule != extents.SizeUnaligned || v.Sealed {
			continue
		}
		if number := partitionAt(img.File(), size, o.Window.Offset); number > 0 {
			v.Problems[i].Hint = fmt.Sprintf("partition %d begins there: map the whole image with its partitions: dmloop map --partscan IMAGE", number)
		} else if hint := formatHint(img.File(), size, v.Facts.BlockSize); hint != "" && o.Window.Limit == 0 {
			v.Problems[i].Hint = hint
		}
	}
}

// partitionAt returns the number of the partition that begins at offset in an image, 0
// for none. Partition tables count in the blocks of a disk, which a file does not tell.
func partitionAt(file io.ReaderAt, size, offset extents.Bytes) int {
	if offset <= 0 || offset%dmtable.SectorSize != 0 {
		return 0
	}
	for _, block := range []int64{dmtable.SectorSize, 4096} {
		table, err := parttable.Read(parttable.Disk{ReaderAt: file, Block: block, Size: dmtable.Sectors(size / dmtable.SectorSize)})
		if err != nil {
			continue
		}
		for _, p := range table.Partitions {
			if p.Start == dmtable.Sectors(offset/dmtable.SectorSize) {
				return p.Number
			}
		}
	}
	return 0
}

// containers are formats of disk images that are not plain, by what stands in them.
var containers = []struct {
	at          int64
	magic, name string
	qemu        string // as qemu-img calls it
}{
	{0, "conectix", "a VHD that grows", "vpc"},
	{0, "vhdxfile", "a VHDX", "vhdx"},
	{0, "QFI\xfb", "a qcow image", "qcow2"},
	{0, "KDMV", "a VMDK", "vmdk"},
	{64, "\x7f\x10\xda\xbe", "a VDI", "vdi"},
}

// vhdFooter is how long the footer of a VHD is, which stands at the end of a fixed one.
const vhdFooter = 512

// formatHint says what to do about a size that fits no blocks where the image's format
// is the cause, or "". To make such a file longer hides its footer from whoever looks for it.
func formatHint(file io.ReaderAt, size, block extents.Bytes) string {
	stands := func(at int64, magic string) bool {
		b := make([]byte, len(magic))
		n, _ := file.ReadAt(b, at)
		return n == len(b) && string(b) == magic
	}
	for _, c := range containers {
		if stands(c.at, c.magic) {
			return fmt.Sprintf("it is %s, no plain image of a disk: qemu-img convert -f %s -O raw IMAGE NEW, and map that", c.name, c.qemu)
		}
	}
	disk := size - vhdFooter
	switch {
	case disk <= 0 || !stands(int64(disk), "conectix"):
		return ""
	case disk%max(block, 1) == 0:
		return fmt.Sprintf("its last %d bytes are the footer of a fixed VHD: leave them out with --sizelimit %d", vhdFooter, disk)
	}
	return "its last bytes are the footer of a fixed VHD, and what is before them fits no blocks either: qemu-img convert -f vpc -O raw IMAGE NEW, and map that"
}

// onReadOnlyDevice reports whether it is known that nobody can write to the device that
// the image's file system is mounted from.
func (s *System) onReadOnlyDevice(f image.Facts) bool {
	if !f.ReadOnly || f.Device.Major == 0 {
		return false
	}
	conn, err := s.mapper()
	if err != nil {
		return false
	}
	readOnly, err := blockdev.ReadOnly(s.sysfs, conn, f.Device)
	return err == nil && readOnly
}
