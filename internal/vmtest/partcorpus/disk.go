package partcorpus

import (
	"encoding/binary"
	"hash/crc32"
	"unicode/utf16"
)

// Disk is the bytes of an image.
type Disk []byte

// p is an entry of an MBR, q one of a GPT; both in blocks.
type (
	p struct {
		kind         byte
		start, count uint32
	}
	q struct {
		number     int
		start, end uint64
	}
)

func (d Disk) wipe(from, to int) { clear(d[from:to]) }

// sign puts the mark of a boot sector on this sector.
func (d Disk) sign(sector int) { copy(d[sector*512+510:], "\x55\xaa") }

// mbr writes the entries and the signature of an MBR.
func (d Disk) mbr(entries ...p) {
	d.wipe(446, 510)
	d.ebr(0, entries...)
	copy(d[440:], "\xcd\xab\x34\x12")
}

// ebr writes a link of the chain of logical partitions.
func (d Disk) ebr(sector int, entries ...p) {
	for i, e := range entries {
		b := d[sector*512+446+16*i:]
		b[4] = e.kind
		binary.LittleEndian.PutUint32(b[8:], e.start)
		binary.LittleEndian.PutUint32(b[12:], e.count)
	}
	d.sign(sector)
}

// chain writes an extended partition with so many logical ones, each of 8 sectors.
func (d Disk) chain(at, count int) {
	d.mbr(p{0x05, uint32(at), 16 * uint32(count)})
	for i := range count {
		entries := []p{{0x83, 8, 8}, {0x05, 16 * uint32(i+1), 16}}
		if i == count-1 {
			entries = entries[:1]
		}
		d.ebr(at+16*i, entries...)
	}
}

// links writes an extended partition with so many empty links before the only logical one.
func (d Disk) links(at, count int) {
	d.mbr(p{0x05, uint32(at), 8192})
	for i := range count {
		d.ebr(at+i, p{}, p{0x05, uint32(i + 1), 8})
	}
	d.ebr(at+count, p{0x83, 8, 100})
}

// table is a GPT; fields that are 0 have the usual values.
type table struct {
	block   int
	entries []q
	names   []string // of the entries
	untyped int      // this entry has no type
	count   int      // entries that there is room for
	claim   uint32   // entries that the header claims instead
	none    bool     // the header claims none
	length  uint32   // of an entry, as the header claims
	header  int      // bytes
	first   int      // block of the entries
	at      uint64   // where the header says that it is
	last    uint64   // usable block
}

// gpt writes a usual GPT with its copy and its protection.
func (d Disk) gpt(block int, entries ...q) { d.gptOf(table{block: block, entries: entries}) }

func (d Disk) gptOf(t table) {
	d.mbr(p{0xee, 1, uint32(Size/t.block - 1)})
	count := or(t.count, 128)
	bytes := make([]byte, 128*count)
	for i, e := range t.entries {
		b := bytes[128*(e.number-1):]
		if e.number != t.untyped {
			copy(b, "\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4")
		}
		copy(b[16:], "\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee")
		b[31] = byte(e.number)
		binary.LittleEndian.PutUint64(b[32:], e.start)
		binary.LittleEndian.PutUint64(b[40:], e.end)
		if i < len(t.names) {
			for j, unit := range utf16.Encode([]rune(t.names[i])) {
				binary.LittleEndian.PutUint16(b[56+2*j:], unit)
			}
		}
	}
	last := Size/t.block - 1
	copied := last - (len(bytes)+t.block-1)/t.block
	d.gptHeader(t, 1, or(t.first, 2), bytes)
	if t.count == 0 {
		d.gptHeader(t, last, copied, bytes)
	}
}

// gptHeader writes a header into block at, and its entries into block first.
func (d Disk) gptHeader(t table, at, first int, entries []byte) {
	last := Size/t.block - 1
	h := d[at*t.block:]
	clear(h[:t.block])
	copy(h, "EFI PART\x00\x00\x01\x00")
	size := or(t.header, 92)
	put32, put64 := binary.LittleEndian.PutUint32, binary.LittleEndian.PutUint64
	put32(h[12:], uint32(size))
	put64(h[24:], or(t.at, uint64(at)))
	put64(h[32:], uint64(last+1-at))
	put64(h[40:], 34)
	put64(h[48:], or(t.last, uint64(last-33)))
	copy(h[56:], "dmloop's corpus!")
	put64(h[72:], uint64(first))
	put32(h[80:], or(t.claim, uint32(len(entries)/128)))
	if t.none {
		put32(h[80:], 0)
	}
	put32(h[84:], or(t.length, 128))
	put32(h[88:], crc32.ChecksumIEEE(entries))
	if first*t.block < Size {
		copy(d[first*t.block:], entries)
	}
	put32(h[16:], crc32.ChecksumIEEE(h[:min(size, len(h))]))
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// fat writes the boot sector of a FAT file system that has its name at a place.
func (d Disk) fat(name string, at int, media byte) {
	copy(d, "\xeb\x3c\x90MSDOS5.0\x00\x02\x04\x04\x00\x02\x00\x02\x00\x40")
	d[21] = media
	copy(d[at:], name)
	copy(d[90:], "\x0e\x1f\xbe\x5b\x7c\xac\x22\xc0\x74\x0b\x56\xb4\x0e\xbb\x07\x00\xcd\x10\x5e\xeb\xf0\x32\xe4\xcd\x16\xcd\x19\xeb\xfeThis is not a bootable disk.\r\n")
	d.sign(0)
}

// sgi writes a disk label of SGI that could be an MBR too.
func (d Disk) sgi() {
	d.mbr(p{0x83, 2048, 100})
	put := binary.BigEndian.PutUint32
	put(d, 0x0be5a941)
	put(d[312:], 200) // blocks of the first partition, then where it begins and its type
	put(d[316:], 100)
	put(d[320:], 0x83)
	sum := uint32(0)
	for at := 0; at < 512; at += 4 {
		sum += binary.BigEndian.Uint32(d[at:])
	}
	put(d[504:], -sum)
}

// bsd writes a disk label of BSD.
func (d Disk) bsd(sector int, slices [][2]uint32) {
	b := d[sector*512:]
	binary.LittleEndian.PutUint32(b, 0x82564557)
	binary.LittleEndian.PutUint16(b[138:], uint16(len(slices)))
	for i, s := range slices {
		e := b[148+16*i:]
		binary.LittleEndian.PutUint32(e, s[1])
		binary.LittleEndian.PutUint32(e[4:], s[0])
		e[12] = 7
	}
	// The third slice, which is not in use, begins elsewhere than at 0: starts count from
	// the beginning of the disk.
	binary.LittleEndian.PutUint32(b[148+32+4:], 2048)
}

// sun writes a disk label of Sun with one partition.
func (d Disk) sun() {
	put := binary.BigEndian.PutUint16
	put(d[436:], 1)  // heads
	put(d[438:], 16) // sectors
	binary.BigEndian.PutUint32(d[444:], 0)
	binary.BigEndian.PutUint32(d[448:], 1600)
	put(d[508:], 0xdabe)
	sum := uint16(0)
	for at := 0; at < 510; at += 2 {
		sum ^= binary.BigEndian.Uint16(d[at:])
	}
	put(d[510:], sum)
}

// apple writes a partition map of Apple.
func (d Disk) apple(parts [][2]uint32) {
	copy(d, "ER\x02\x00")
	for i, part := range parts {
		b := d[512*(i+1):]
		copy(b, "PM")
		binary.BigEndian.PutUint32(b[4:], uint32(len(parts)))
		binary.BigEndian.PutUint32(b[8:], part[0])
		binary.BigEndian.PutUint32(b[12:], part[1])
		copy(b[48:], "Apple_HFS")
	}
}
