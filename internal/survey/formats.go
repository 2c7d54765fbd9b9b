package survey

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/image"
	"dmloop/internal/seal"
)

// Format is what an image holds when that is not the plain content of a disk that one writes
// to. The zero value is a plain image.
type Format struct {
	Name   string         // stable, such as "qcow2"
	What   string         // the same for people, with an article
	Remedy extents.Remedy // how to come to a plain image, or how to use it as it is
	Use    Use
}

// Use says what the device of an image of some format would be good for.
type Use int

// The uses.
const (
	Disk     Use = iota // it shows a disk
	Packed              // it shows the format's own bytes, and no disk
	ReadOnly            // it shows a file system that is only ever read
	Footer              // it shows a disk, with something behind it that is no part of it
)

// formats are told by what stands in them, in bytes from the beginning or, below 0, from the end.
// The first that fits counts.
var formats = []struct {
	at     int64
	magic  string
	format Format
}{
	{0, "conectix", Format{"vhd", "a VHD that grows", advice.ConvertVHD, Packed}},
	{0, "vhdxfile", Format{"vhdx", "a VHDX", advice.ConvertVHDX, Packed}},
	{0, "QFI\xfb\x00\x00\x00\x01", Format{"qcow", "a qcow image", advice.ConvertQCOW1, Packed}},
	{0, "QFI\xfb", Format{"qcow2", "a qcow2 image", advice.ConvertQCOW, Packed}},
	{0, "KDMV", Format{"vmdk", "a VMDK", advice.ConvertVMDK, Packed}},
	{0, "COWD", Format{"vmdk", "a VMDK", advice.ConvertVMDK, Packed}},
	{0, "# Disk DescriptorFile", Format{"vmdk-descriptor", "the descriptor of a VMDK, a text that names the files with the data", advice.ConvertVMDK, Packed}},
	{64, "\x7f\x10\xda\xbe", Format{"vdi", "a VDI", advice.ConvertVDI, Packed}},
	{0, "\x3a\xff\x26\xed", Format{"android-sparse", "an image of Android's sparse format", advice.ConvertSparse, Packed}},
	{0, "\x1f\x8b\x08", Format{"gzip", "compressed (gzip)", advice.Gunzip, Packed}},
	{0, "\xfd7zXZ\x00", Format{"xz", "compressed (xz)", advice.Unxz, Packed}},
	{0, "\x28\xb5\x2f\xfd", Format{"zstd", "compressed (zstd)", advice.Unzstd, Packed}},
	{4, "\x31\x41\x59\x26\x53\x59", Format{"bzip2", "compressed (bzip2)", advice.Bunzip, Packed}}, // after "BZh" and a digit
	{0, "hsqs", Format{"squashfs", "a squashfs", advice.MountReadOnly.Of("squashfs"), ReadOnly}},
	{32769, "CD001", Format{"iso9660", "an ISO 9660 file system", advice.MountReadOnly.Of("iso9660"), ReadOnly}},
	{-vhdFooter, "conectix", Format{"vhd-fixed", "a disk with the footer of a fixed VHD behind it", advice.LeaveFooterOut, Footer}},
	{-vhdFooter, "koly", Format{"dmg", "an image of Apple's disk utility", advice.ConvertDMG, Packed}},
}

// vhdFooter is how long the footer of a VHD is, which stands at the end of a fixed one.
const vhdFooter = 512

// formatHead is how much of the beginning the table wants to see.
const formatHead = 32769 + 5

// FormatOf tells what content of size bytes is. Where it cannot be read it is nothing in
// particular: nothing depends on it.
func FormatOf(content io.ReaderAt, size extents.Bytes) Format {
	head := make([]byte, min(size, formatHead))
	n, _ := content.ReadAt(head, 0)
	head = head[:n]
	tail := make([]byte, 8)
	if size >= vhdFooter {
		n, _ = content.ReadAt(tail, int64(size)-vhdFooter)
		tail = tail[:n]
	}
	for _, f := range formats {
		switch {
		case f.at < 0 && strings.HasPrefix(string(tail), f.magic) && size > vhdFooter,
			f.at >= 0 && int64(len(head)) > f.at && strings.HasPrefix(string(head[f.at:]), f.magic):
			return f.format
		}
	}
	return Format{}
}

// at fills in what the remedy says of an image at path of size bytes, on blocks of this size.
func (f Format) at(path string, size, block extents.Bytes) Format {
	switch disk := size - vhdFooter; {
	case f.Use == Footer && disk%max(block, 1) == 0:
		f.Remedy = f.Remedy.At(vhdFooter, disk)
	case f.Use == Footer:
		f.Remedy = advice.ConvertFixedVHD.Of(plainName(path))
	case f.Use == Packed:
		f.Remedy = f.Remedy.Of(plainName(path))
	}
	return f
}

// packedNames are the endings of files that hold a disk in another form.
var packedNames = []string{".qcow", ".qcow2", ".qed", ".vhd", ".vhdx", ".vmdk", ".vdi", ".simg", ".dmg", ".gz", ".xz", ".zst", ".zstd", ".bz2"}

// plainName is a path beside the image at path for its content as a plain image: one that nothing
// has yet, since the programs that convert overwrite what is there.
func plainName(path string) string {
	name := path
	if ending := filepath.Ext(path); slices.Contains(packedNames, strings.ToLower(ending)) && len(filepath.Base(path)) > len(ending) {
		name = strings.TrimSuffix(path, ending)
		name += map[bool]string{true: ".img"}[filepath.Ext(name) == ""]
	}
	for {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return name
		} else if err != nil {
			return path + ".raw"
		}
		name += ".raw"
	}
}

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
		} else if r.Format.forSize() && o.Window.Limit == 0 {
			r.Problems[i].Remedy = r.Format.Remedy
		}
	}
}

// forSize reports whether the format is why the size fits no blocks: to make such a file longer
// is no help, and hides a footer from whoever looks for it.
func (f Format) forSize() bool { return f.Use == Packed || f.Use == Footer }

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

// ByFormatOf is ByFormat for a file that was found and not opened.
func ByFormatOf(found *image.Found, problems []extents.Problem) {
	img, err := found.Open()
	if err != nil {
		return
	}
	defer img.Close()
	if facts, err := img.Facts(); err == nil {
		ByFormat(img.File(), found.Given(), facts, problems)
	}
}

// ByFormat replaces, in place, the remedies for the size of the image at path where its format
// is the cause. It is for what judges a size without looking into the image.
func ByFormat(file *os.File, path string, facts image.Facts, problems []extents.Problem) {
	for i, p := range problems {
		if p.Rule != extents.SizeUnaligned {
			continue
		}
		st, err := seal.Inspect(file, false)
		if err != nil {
			continue
		}
		if f := FormatOf(ends{st}, facts.Size).at(path, facts.Size, facts.BlockSize); f.forSize() {
			problems[i].Remedy = f.Remedy
			problems[i].Message = fmt.Sprintf("%s, and the file is %s", p.Message, f.What)
		}
	}
}
