// Package partcorpus has disk images with partition tables of every kind that was met or
// thought of, each with the partitions that the Linux kernel makes of it. They are bytes,
// not files, so that tests with and without a guest can use them.
package partcorpus

import (
	"fmt"
	"slices"
)

// Size is what every image has: 16384 sectors of 512 bytes, or 2048 blocks of 4096.
const Size = 8 << 20

// Sectors is Size in sectors.
const Sectors = Size / 512

// Case is an image and what is to be made of it.
type Case struct {
	Name   string
	Block  int        // logical block size of the device that it is on
	Kernel string     // what the kernel shows: number:start+length in sectors, with blanks between
	Refuse string     // with these words dmloop refuses the table; it shows what the kernel shows when this is empty
	Fewer  string     // what dmloop shows where the kernel knows of more
	Write  func(Disk) // into zeros
}

// Image returns the bytes.
func (c Case) Image() []byte {
	d := Disk(make([]byte, Size))
	c.Write(d)
	return d
}

// Shown is what dmloop shows of the image if it does not refuse it.
func (c Case) Shown() string {
	if c.Fewer != "" {
		return c.Fewer
	}
	return c.Kernel
}

// Cases returns the corpus.
func Cases() []Case {
	return slices.Concat(mbrCases(), chainCases(), gptCases(), brokenGPTCases(), blockCases(), wholeCases(), foreignCases())
}

func mbrCases() []Case {
	return []Case{
		{"nothing", 512, "", "", "", func(Disk) {}},
		{"mbr", 512, "1:2048+4096 2:6144+8192", "", "", func(d Disk) {
			d.mbr(p{0x83, 2048, 4096}, p{0x83, 6144, 8192})
		}},
		{"mbr, entries left out", 512, "2:2048+100 4:4096+200", "", "", func(d Disk) {
			d.mbr(p{}, p{0x83, 2048, 100}, p{}, p{0x0c, 4096, 200})
		}},
		{"mbr, not in order", 512, "1:8192+100 2:64+100 3:4096+8", "", "", func(d Disk) {
			d.mbr(p{0x83, 8192, 100}, p{0x83, 64, 100}, p{0x83, 4096, 8})
		}},
		{"mbr, empty type with a size", 512, "1:2048+4096", "", "", func(d Disk) { d.mbr(p{0, 2048, 4096}) }},
		{"mbr, no size", 512, "2:2048+100", "", "", func(d Disk) { d.mbr(p{0x83, 2048, 0}, p{0x83, 2048, 100}) }},
		{"mbr, begins at sector 0", 512, "1:0+8192", "", "", func(d Disk) { d.mbr(p{0x83, 0, 8192}) }},
		{"mbr, begins beyond the end", 512, "2:2048+100", "", "", func(d Disk) {
			d.mbr(p{0x83, Sectors, 100}, p{0x83, 2048, 100}, p{0x83, 1 << 31, 1 << 31})
		}},
		{"mbr, ends beyond the end", 512, "1:2048+14336 2:16383+1", "", "", func(d Disk) {
			d.mbr(p{0x83, 2048, Sectors}, p{0x83, Sectors - 1, 1<<32 - 1})
		}},
		{"mbr, overlapping", 512, "1:2048+4096 2:4096+4096 3:2048+4096", "", "", func(d Disk) {
			d.mbr(p{0x83, 2048, 4096}, p{0x83, 4096, 4096}, p{0x83, 2048, 4096})
		}},
		{"mbr, without the signature", 512, "", "", "", func(d Disk) {
			d.mbr(p{0x83, 2048, 4096})
			d[510] = 0
		}},
		{"mbr, a boot flag that is none", 512, "", "", "", func(d Disk) {
			d.mbr(p{0x83, 2048, 4096}, p{0x83, 8192, 100})
			d[446+16] = 1
		}},
		{"iso, hybrid", 512, "1:0+12000 2:4000+5000", "", "", func(d Disk) {
			d.mbr(p{0x00, 0, 12000}, p{0xef, 4000, 5000})
			d[446] = 0x80
			copy(d[32768+1:], "CD001")
		}},
		{"iso, hybrid with an unprotected gpt", 512, "1:0+12000 2:4000+5000", "", "", func(d Disk) {
			d.gpt(512, q{1, 64, 11999}, q{2, 4000, 8999})
			d.mbr(p{0x00, 0, 12000}, p{0xef, 4000, 5000})
			copy(d[32768+1:], "CD001")
		}},
		{"mbr with a stale gpt", 512, "1:2048+4096", "", "", func(d Disk) {
			d.gpt(512, q{1, 2048, 10239}, q{2, 10240, 14335})
			d.mbr(p{0x83, 2048, 4096})
		}},
		{"mbr with the stale copy of a gpt", 512, "1:2048+4096", "", "", func(d Disk) {
			d.gpt(512, q{1, 2048, 10239}, q{2, 10240, 14335})
			d.wipe(0, 34*512)
			d.mbr(p{0x83, 2048, 4096})
		}},
	}
}

func chainCases() []Case {
	return []Case{
		{"logical", 512, "1:2048+1000 2:4096+2 5:4160+500 6:6208+800", "", "", func(d Disk) {
			d.mbr(p{0x83, 2048, 1000}, p{0x05, 4096, 8192})
			d.ebr(4096, p{0x83, 64, 500}, p{0x05, 2048, 2000})
			d.ebr(4096+2048, p{0x83, 64, 800})
		}},
		{"logical, type 0x0f", 512, "1:4096+2 5:4160+500", "", "", func(d Disk) {
			d.mbr(p{0x0f, 4096, 8192})
			d.ebr(4096, p{0x83, 64, 500})
		}},
		{"logical, type 0x85", 512, "3:4096+2 5:4160+500", "", "", func(d Disk) {
			d.mbr(p{}, p{}, p{0x85, 4096, 8192})
			d.ebr(4096, p{0x83, 64, 500})
		}},
		{"logical, link first", 512, "1:4096+2 5:6208+800", "", "", func(d Disk) {
			d.mbr(p{0x05, 4096, 8192})
			d.ebr(4096, p{0x05, 2048, 2000}, p{})
			d.ebr(4096+2048, p{}, p{0x83, 64, 800})
		}},
		{"logical, four entries", 512, "1:4096+2 5:4160+100 6:4300+100 7:4500+100", "", "", func(d Disk) {
			d.mbr(p{0x05, 4096, 8192})
			d.ebr(4096, p{0x83, 64, 100}, p{0x83, 204, 100}, p{0x83, 404, 100}, p{0x83, 8000, 8000})
		}},
		{"logical, outside the extended one", 512, "1:4096+2 5:13096+100", "", "", func(d Disk) {
			d.mbr(p{0x05, 4096, 100})
			d.ebr(4096, p{0x83, 9000, 100})
		}},
		{"logical, beyond the end", 512, "1:4096+2 5:4160+12224", "", "", func(d Disk) {
			d.mbr(p{0x05, 4096, 1 << 20})
			d.ebr(4096, p{0x83, 64, 1 << 19}, p{0x05, 1 << 19, 1 << 19})
		}},
		{"logical, none", 512, "1:4096+2", "", "", func(d Disk) { d.mbr(p{0x05, 4096, 8192}) }},
		{"logical, an extended one of a sector", 512, "1:4096+1", "", "", func(d Disk) { d.mbr(p{0x05, 4096, 1}) }},
		{"logical, an extended one of no size", 512, "", "", "", func(d Disk) {
			d.mbr(p{0x05, 4096, 0})
			d.ebr(4096, p{0x83, 64, 100})
		}},
		{"logical, an extended one beyond the end", 512, "2:2048+8", "", "", func(d Disk) {
			d.mbr(p{0x05, 1 << 20, 1 << 20}, p{0x83, 2048, 8})
		}},
		{"logical, an extended one at sector 0", 512, "1:0+2 2:64+100" + repeated(5, 251, ":64+100"), "comes back to sector 0", "", func(d Disk) {
			d.mbr(p{0x05, 0, 8192}, p{0x83, 64, 100})
		}},
		{"logical, two extended ones", 512, "1:2048+2 2:8192+2 5:2112+100 6:8256+100", "", "", func(d Disk) {
			d.mbr(p{0x05, 2048, 2048}, p{0x0f, 8192, 2048})
			d.ebr(2048, p{0x83, 64, 100})
			d.ebr(8192, p{0x83, 64, 100})
		}},
		{"logical, 40 of them", 512, chain(4096, 40), "", "", func(d Disk) { d.chain(4096, 40) }},
		{"logical, 300 of them", 512, chain(4096, 251), "", "", func(d Disk) { d.chain(4096, 300) }},
		{"logical, a loop", 512, "1:4096+2" + repeated(5, 251, ":4160+500"), "comes back to sector 4096", "", func(d Disk) {
			d.mbr(p{0x05, 4096, 8192})
			d.ebr(4096, p{0x83, 64, 500}, p{0x05, 0, 8192})
		}},
		{"logical, a loop of three", 512, "1:4096+2", "comes back to sector 4200", "", func(d Disk) {
			d.mbr(p{0x05, 4096, 8192})
			d.ebr(4096, p{}, p{0x05, 104, 100})
			d.ebr(4200, p{}, p{0x05, 204, 100})
			d.ebr(4300, p{}, p{0x05, 104, 100})
		}},
		{"logical, one after 100 links", 512, "1:4096+2", "", "", func(d Disk) { d.links(4096, 100) }},
		{"logical, one after 99 links", 512, "1:4096+2 5:4203+100", "", "", func(d Disk) { d.links(4096, 99) }},
	}
}

func repeated(from, count int, what string) (all string) {
	for i := range count {
		all += fmt.Sprintf(" %d%s", from+i, what)
	}
	return all
}

// chain is what the kernel shows of Disk.chain.
func chain(at, count int) string {
	all := fmt.Sprintf("1:%d+2", at)
	for i := range count {
		all += fmt.Sprintf(" %d:%d+8", 5+i, at+16*i+8)
	}
	return all
}

func gptCases() []Case {
	return []Case{
		{"gpt", 512, "1:2048+4096 2:6144+8192", "", "", func(d Disk) { d.gpt(512, q{1, 2048, 6143}, q{2, 6144, 14335}) }},
		{"gpt, entries left out", 512, "2:2048+8 128:4096+8", "", "", func(d Disk) { d.gpt(512, q{2, 2048, 2055}, q{128, 4096, 4103}) }},
		{"gpt, 128 entries in use", 512, full(128), "", "", func(d Disk) { d.gpt(512, fullEntries(128)...) }},
		{"gpt, 300 entries in use", 512, full(255), "", "", func(d Disk) {
			d.gptOf(table{block: 512, entries: fullEntries(300), count: 300, first: 80})
		}},
		{"gpt, names with slashes and line ends", 512, "1:2048+8 2:4096+8", "", "", func(d Disk) {
			d.gptOf(table{block: 512, entries: []q{{1, 2048, 2055}, {2, 4096, 4103}}, names: []string{"../../../dev/sda\nDEVNAME=/dev/x", "\x00\x1b]0;a\x07/\\\U0001f4a9"}})
		}},
		{"gpt, hybrid", 512, "1:2048+4096 2:8192+100", "", "", func(d Disk) {
			d.gpt(512, q{1, 2048, 6143}, q{2, 8192, 8291})
			d.mbr(p{0xee, 1, 2047}, p{0x83, 2048, 100}, p{0x07, 10000, 100})
		}},
		{"gpt, hybrid with the protection last", 512, "1:2048+4096", "", "", func(d Disk) {
			d.gpt(512, q{1, 2048, 6143})
			d.mbr(p{0x83, 2048, 100}, p{}, p{}, p{0xee, 1, 2047})
		}},
		{"gpt, protection of the wrong size", 512, "1:2048+4096", "", "", func(d Disk) {
			d.gpt(512, q{1, 2048, 6143})
			d.mbr(p{0xee, 1, 7})
		}},
		{"gpt, protection with a boot flag that is none", 512, "1:2048+4096", "", "", func(d Disk) {
			d.gpt(512, q{1, 2048, 6143})
			d[446] = 0x17
		}},
		{"gpt, no signature of the mbr", 512, "", "", "", func(d Disk) {
			d.gpt(512, q{1, 2048, 6143})
			d[511] = 0
		}},
		{"gpt, copy gone", 512, "1:2048+4096", "", "", func(d Disk) {
			d.gpt(512, q{1, 2048, 6143})
			d.wipe(Size-33*512, Size)
		}},
		{"gpt, copy says otherwise", 512, "1:2048+4096", "", "", func(d Disk) {
			d.gpt(512, q{1, 4096, 8191})
			saved := slices.Clone(d[Size-33*512:])
			d.gpt(512, q{1, 2048, 6143})
			copy(d[Size-33*512:], saved)
		}},
		{"gpt, begins at block 0", 512, "1:0+6144", "", "", func(d Disk) { d.gpt(512, q{1, 0, 6143}) }},
		{"gpt, overlapping", 512, "1:2048+4096 2:4096+4096", "", "", func(d Disk) { d.gpt(512, q{1, 2048, 6143}, q{2, 4096, 8191}) }},
		{"gpt, all of the disk", 512, "1:0+16384", "", "", func(d Disk) { d.gpt(512, q{1, 0, Sectors - 1}) }},
		{"gpt, one beyond the end", 512, "2:2048+8", "", "", func(d Disk) { d.gpt(512, q{1, 4096, Sectors}, q{2, 2048, 2055}, q{3, 1 << 55, 1<<55 + 8}) }},
		{"gpt, one of no length", 512, "2:2048+8", "", "", func(d Disk) { d.gpt(512, q{1, 4096, 4095}, q{2, 2048, 2055}) }},
		{"gpt, one without a type", 512, "2:2048+8", "", "", func(d Disk) {
			d.gptOf(table{block: 512, entries: []q{{1, 4096, 4103}, {2, 2048, 2055}}, untyped: 1})
		}},
		{"gpt, entries elsewhere", 512, "1:2048+8", "", "", func(d Disk) { d.gptOf(table{block: 512, entries: []q{{1, 2048, 2055}}, first: 1000}) }},
		{"gpt, a header of 512 bytes", 512, "1:2048+8", "", "", func(d Disk) { d.gptOf(table{block: 512, entries: []q{{1, 2048, 2055}}, header: 512}) }},
		{"gpt, four entries", 512, "4:2048+8", "", "", func(d Disk) { d.gptOf(table{block: 512, entries: []q{{4, 2048, 2055}}, count: 4}) }},
	}
}

func full(count int) (all string) {
	for _, e := range fullEntries(count) {
		all += fmt.Sprintf(" %d:%d+8", e.number, e.start)
	}
	return all[1:]
}

func fullEntries(count int) (all []q) {
	for i := range count {
		all = append(all, q{i + 1, uint64(2048 + 16*i), uint64(2048 + 16*i + 7)})
	}
	return all
}

func brokenGPTCases() []Case {
	one := []q{{1, 2048, 6143}}
	return []Case{
		{"gpt, only the copy", 512, "", "its copy in the last block is whole", "", func(d Disk) {
			d.gpt(512, one...)
			d.wipe(512, 34*512)
		}},
		{"gpt, only the copy and no mbr", 512, "", "", "", func(d Disk) {
			d.gpt(512, one...)
			d.wipe(0, 34*512)
		}},
		{"gpt, none under the protection", 512, "", "the MBR protects a GPT, and there is none", "", func(d Disk) { d.mbr(p{0xee, 1, Sectors - 1}) }},
		{"gpt, header damaged", 512, "", "the checksum of its header is wrong; its copy in the last block is whole", "", func(d Disk) {
			d.gpt(512, one...)
			d[512+60] ^= 1
		}},
		{"gpt, entries damaged", 512, "", "the checksum of its entries is wrong", "", func(d Disk) {
			d.gpt(512, one...)
			d[1024+100] ^= 1
		}},
		{"gpt, both damaged", 512, "", "the checksum of its header is wrong", "", func(d Disk) {
			d.gpt(512, one...)
			d[512+60] ^= 1
			d[Size-512+60] ^= 1
		}},
		{"gpt, protection not at block 1", 512, "", "does not begin at block 1", "", func(d Disk) {
			d.gpt(512, one...)
			d.mbr(p{0xee, 2, Sectors - 2})
		}},
		{"gpt, one that ends before it begins", 512, "?", "partition 1 of the GPT begins at block 4096 and ends at block 4000", "", func(d Disk) {
			d.gpt(512, q{1, 4096, 4000}, q{2, 2048, 2055})
		}},
		{"gpt, in the wrong block", 512, "", "says that it belongs in block 2", "", func(d Disk) { d.gptOf(table{block: 512, entries: one, at: 2}) }},
		{"gpt, of a larger disk", 512, "", "it is of a disk of more than 40000 blocks", "", func(d Disk) { d.gptOf(table{block: 512, entries: one, last: 40000}) }},
		{"gpt, nothing usable", 512, "", "have to end at block 33", "", func(d Disk) { d.gptOf(table{block: 512, entries: one, last: 33}) }},
		{"gpt, a header of 91 bytes", 512, "", "its header claims 91 bytes", "", func(d Disk) { d.gptOf(table{block: 512, entries: one, header: 91}) }},
		{"gpt, a header larger than a block", 512, "", "its header claims 4096 bytes", "", func(d Disk) { d.gptOf(table{block: 512, entries: one, header: 4096}) }},
		{"gpt, entries of 256 bytes", 512, "", "it claims 128 entries of 256 bytes", "", func(d Disk) { d.gptOf(table{block: 512, entries: one, length: 256}) }},
		{"gpt, too many entries", 512, "", "it claims 4294967295 entries", "", func(d Disk) { d.gptOf(table{block: 512, entries: one, claim: 1<<32 - 1}) }},
		{"gpt, no entries", 512, "", "it claims 0 entries", "", func(d Disk) { d.gptOf(table{block: 512, entries: one, none: true}) }},
		{"gpt, entries beyond the end", 512, "", "its entries begin at block 40000", "", func(d Disk) { d.gptOf(table{block: 512, entries: one, first: 40000}) }},
	}
}

func blockCases() []Case {
	return []Case{
		{"gpt in blocks of 4096", 4096, "1:2048+4096 2:8192+4096", "", "", func(d Disk) { d.gpt(4096, q{1, 256, 767}, q{2, 1024, 1535}) }},
		{"gpt of 512 on blocks of 4096", 4096, "", "this GPT was made for sectors of 512 bytes, and those of the device have 4096", "", func(d Disk) {
			d.gpt(512, q{1, 2048, 6143})
		}},
		{"gpt of 4096 on sectors of 512", 512, "", "this GPT was made for sectors of 4096 bytes, and those of the device have 512", "", func(d Disk) {
			d.gpt(4096, q{1, 256, 767})
		}},
		{"mbr in blocks of 4096", 4096, "1:2048+4096 2:8192+4096", "", "", func(d Disk) { d.mbr(p{0x83, 256, 512}, p{0x83, 1024, 512}) }},
		{"mbr of 512 on blocks of 4096", 4096, "", "this MBR was made for sectors of 512 bytes, and those of the device have 4096", "", func(d Disk) {
			d.mbr(p{0x83, 2048, 4096}, p{0x83, 6144, 8192})
		}},
		{"mbr of 512 on blocks of 4096, which ends beyond the end", 4096, "1:8192+8192", "this MBR was made for sectors of 512 bytes", "", func(d Disk) {
			d.mbr(p{0x83, 1024, 4096})
		}},
		{"mbr, logical in blocks of 4096", 4096, "1:4096+8 5:4608+800", "", "", func(d Disk) {
			d.mbr(p{0x05, 512, 1024})
			d.ebr(4096, p{0x83, 64, 100})
		}},
		{"mbr in blocks of 4096, beyond every end", 4096, "1:8192+8192", "", "", func(d Disk) { d.mbr(p{0x83, 1024, 1 << 20}) }},
		{"gpt in blocks of 4096, hybrid", 4096, "1:2048+4096", "", "", func(d Disk) {
			d.gpt(4096, q{1, 256, 767})
			d.mbr(p{0xee, 1, 255}, p{0x83, 256, 512})
		}},
		{"nothing on blocks of 4096", 4096, "", "", "", func(Disk) {}},
	}
}

// wholeCases are disks that a file system takes as a whole.
func wholeCases() []Case {
	return []Case{
		{"fat12", 512, "", "", "", func(d Disk) { d.fat("FAT12   ", 54, 0xf0) }},
		{"fat16", 512, "", "", "", func(d Disk) { d.fat("FAT16   ", 54, 0xf8) }},
		{"fat32", 512, "", "", "", func(d Disk) { d.fat("FAT32   ", 82, 0xf8) }},
		{"fat16, with text for people without a system", 512, "", "", "", func(d Disk) {
			d.fat("FAT16   ", 54, 0xf8)
			copy(d[440:], "\r\nRemove disks or other media.\xff\r\nDisk error\xff\r\nPress any key to restart\r\n")
		}},
		{"fat32, with code like a table", 512, "", "", "", func(d Disk) {
			d.fat("FAT32   ", 82, 0xf8)
			d.mbr(p{0x83, 2048, 100}, p{0x83, 4096, 100})
			d[446] = 0x65
		}},
		{"fat32 with a table", 512, "1:0+16384", "", "", func(d Disk) {
			d.fat("FAT32   ", 82, 0xf8)
			d.mbr(p{0x0c, 0, Sectors})
			d[446] = 0x80
		}},
		{"exfat", 512, "", "", "", func(d Disk) {
			copy(d, "\xeb\x76\x90EXFAT   ")
			d.sign(0)
		}},
		{"ntfs", 512, "", "", "", func(d Disk) {
			copy(d, "\xeb\x52\x90NTFS    \x00\x02\x08")
			copy(d[390:], "\r\nA disk read error occurred\x00\r\nBOOTMGR is compressed\x00\r\nPress Ctrl+Alt+Del to restart\r\n")
			d.sign(0)
		}},
		{"ext4", 512, "", "", "", func(d Disk) { copy(d[1024+56:], "\x53\xef") }},
		{"xfs", 512, "", "", "", func(d Disk) { copy(d, "XFSB\x00\x00\x10\x00") }},
		{"luks", 512, "", "", "", func(d Disk) { copy(d, "LUKS\xba\xbe\x00\x02") }},
		{"iso, plain", 512, "", "", "", func(d Disk) { copy(d[32768:], "\x01CD001\x01") }},
	}
}

// foreignCases are of kinds that dmloop leaves to others.
func foreignCases() []Case {
	return []Case{
		{"dynamic disk of Windows", 512, "1:63+16000", "this is a dynamic disk of Windows", "", func(d Disk) {
			d.mbr(p{0x42, 63, 16000})
			copy(d[6*512:], "PRIVHEAD")
		}},
		{"mbr with the type of dynamic disks", 512, "1:63+16000", "", "", func(d Disk) { d.mbr(p{0x42, 63, 16000}) }},
		{"sgi", 512, "1:100+200 13:0+16384", "there is an SGI disk label", "", func(d Disk) { d.sgi() }},
		{"aix", 512, "", "", "", func(d Disk) {
			d.mbr(p{0x41, 2048, 100})
			copy(d, "\xc9\xc2\xd4\xc1")
			copy(d[7*512:], "_LVM")
		}},
		{"aix, with a partition of Linux", 512, "1:2048+100", "", "", func(d Disk) {
			d.mbr(p{0x83, 2048, 100})
			copy(d, "\xc9\xc2\xd4\xc1")
			copy(d[7*512:], "_LVM")
		}},
		{"bsd in an mbr", 512, "1:2048+4096 5:2048+1000 6:3048+1000", "", "1:2048+4096", func(d Disk) {
			d.mbr(p{0xa5, 2048, 4096})
			d.bsd(2049, [][2]uint32{{2048, 1000}, {3048, 1000}})
		}},
		{"sun", 512, "1:0+1600", "", "-", func(d Disk) { d.sun() }},
		{"apple", 512, "1:1+63 2:64+100", "", "-", func(d Disk) { d.apple([][2]uint32{{1, 63}, {64, 100}}) }},
	}
}
