package survey

import (
	"io"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/image"
)

// betterRemedies replaces the remedies that would lead nowhere, or do harm, because of what
// the file holds or where its file system is mounted, which the rules do not know.
func (r *Report) betterRemedies(img *image.Image, o Options) {
	size := extents.Bytes(r.Facts.Size)
	for i, p := range r.Problems {
		r.Problems[i] = forRoot(p, r.Facts.Mount.Point)
		if p.Rule != extents.SizeUnaligned || r.Sealed {
			continue
		}
		if number := partitionAt(img.File(), size, o.Window.Offset); number > 0 {
			r.Problems[i].Remedy = advice.MapPartitions.At(extents.Bytes(number), 0)
		} else if remedy, known := formatRemedy(img.File(), size, r.Facts.BlockSize); known && o.Window.Limit == 0 {
			r.Problems[i].Remedy = remedy
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
		table, err := blockdev.ReadPartitions(blockdev.Disk{ReaderAt: file, Block: block, Size: dmtable.Sectors(size / dmtable.SectorSize)})
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
	at     int64
	magic  string
	remedy extents.Remedy
}{
	{0, "conectix", advice.ConvertVHD},
	{0, "vhdxfile", advice.ConvertVHDX},
	{0, "QFI\xfb", advice.ConvertQCOW},
	{0, "KDMV", advice.ConvertVMDK},
	{64, "\x7f\x10\xda\xbe", advice.ConvertVDI},
	{0, "\x3a\xff\x26\xed", advice.ConvertSparse},
	{0, "\x1f\x8b", advice.Gunzip},
	{0, "\xfd7zXZ\x00", advice.Unxz},
	{0, "\x28\xb5\x2f\xfd", advice.Unzstd},
}

// vhdFooter is how long the footer of a VHD is, which stands at the end of a fixed one.
const vhdFooter = 512

// formatRemedy says what to do about a size that fits no blocks where the image's format
// is the cause. To make such a file longer hides its footer from whoever looks for it.
func formatRemedy(file io.ReaderAt, size, block extents.Bytes) (remedy extents.Remedy, known bool) {
	stands := func(at int64, magic string) bool {
		b := make([]byte, len(magic))
		n, _ := file.ReadAt(b, at)
		return n == len(b) && string(b) == magic
	}
	for _, c := range containers {
		if stands(c.at, c.magic) {
			return c.remedy, true
		}
	}
	disk := size - vhdFooter
	switch {
	case disk <= 0 || !stands(int64(disk), "conectix"):
		return remedy, false
	case disk%max(block, 1) == 0:
		return advice.LeaveFooterOut.At(vhdFooter, disk), true
	}
	return advice.ConvertFixedVHD, true
}

// ByFormatOf is ByFormat for a file that was found and not opened.
func ByFormatOf(found *image.Found, problems []extents.Problem) {
	img, err := found.Open()
	if err != nil {
		return
	}
	defer img.Close()
	if facts, err := img.Facts(); err == nil {
		ByFormat(img.File(), facts, problems)
	}
}

// ByFormat replaces, in place, the remedies for the size of an image where its format is the
// cause. It is for what judges a size without looking into the image.
func ByFormat(file io.ReaderAt, facts image.Facts, problems []extents.Problem) {
	for i, p := range problems {
		if p.Rule != extents.SizeUnaligned {
			continue
		}
		if remedy, known := formatRemedy(file, facts.Size, facts.BlockSize); known {
			problems[i].Remedy = remedy
		}
	}
}
