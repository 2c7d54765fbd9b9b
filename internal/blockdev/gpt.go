package blockdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
)

// The header of a GPT and its entries (UEFI specification, 5.3).
const (
	gptSignature  = "EFI PART"
	gptHeaderSize = 92
	gptEntrySize  = 128
	primaryBlock  = 1

	// mostEntryBytes is how much of entries the kernel reads (KMALLOC_MAX_SIZE).
	mostEntryBytes = 4 << 20
)

// HasGPT reports whether the header of a GPT is where it would be for blocks of 512 or 4096
// bytes. Whether it holds is for those who use it.
func HasGPT(r io.ReaderAt) (bool, error) {
	buf := make([]byte, len(gptSignature))
	for _, at := range []int64{512, 4096} {
		if _, err := r.ReadAt(buf, at); err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if string(buf) == gptSignature {
			return true, nil
		}
	}
	return false, nil
}

// protectsGPT reports whether the first sector protects a GPT: an MBR with an entry of
// type 0xee that begins at block 1, whatever else stands there.
func protectsGPT(first []byte) bool {
	if !signedMBR(first) {
		return false
	}
	for _, e := range mbrEntries(first) {
		if e.kind == kindProtective && e.start == primaryBlock {
			return true
		}
	}
	return false
}

// readGPT reads the partitions of the GPT that the kernel would take (find_valid_gpt in
// block/partitions/efi.c): the first one. The copy counts only when it was told to look
// for it. A table without a scheme says that there is none that is sound.
func (d Disk) readGPT() (PartitionTable, error) {
	entries, err := d.soundGPT(primaryBlock)
	if d.ForceGPT && entries == nil {
		entries, err = d.soundGPT(d.lastBlock())
	}
	var unsound *unsoundError
	if errors.As(err, &unsound) {
		return PartitionTable{}, nil
	}
	if err != nil {
		return PartitionTable{}, err
	}
	t := PartitionTable{scheme: schemeGPT}
	for number := 1; number <= mostPartitions && number*gptEntrySize <= len(entries); number++ {
		e := entries[(number-1)*gptEntrySize:][:gptEntrySize]
		start, end := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		if [16]byte(e) == [16]byte{} || start > d.lastBlock() || end > d.lastBlock() {
			continue
		}
		if end+1 < start {
			return PartitionTable{scheme: schemeGPT}, refusal(extents.Remedy{}, "partition %d of the GPT begins at block %d and ends at block %d", number, start, end)
		}
		per := dmtable.Sectors(d.perBlock())
		t.keep(d, Partition{Number: number, Start: dmtable.Sectors(start) * per, Length: dmtable.Sectors(end+1-start) * per, uuid: guid(e[16:32])})
	}
	return t, nil
}

// unsoundError says why a GPT does not count.
type unsoundError struct {
	message string
	missing bool // there is nothing that claims to be one
}

func (e *unsoundError) Error() string { return e.message }

func unsound(format string, args ...any) error {
	return &unsoundError{message: fmt.Sprintf(format, args...)}
}

// soundGPT reads the entries of the GPT whose header is in this block. What does not
// count to the kernel (is_gpt_valid) is an unsoundError.
func (d Disk) soundGPT(block uint64) ([]byte, error) {
	if block > d.lastBlock() {
		return nil, &unsoundError{"the disk ends before it", true}
	}
	h, err := d.read(block*uint64(d.perBlock()), d.Block)
	if err != nil {
		return nil, err
	}
	if string(h[:8]) != gptSignature {
		return nil, &unsoundError{"there is none", true}
	}
	if err := d.soundHeader(h, block); err != nil {
		return nil, err
	}
	count, length := binary.LittleEndian.Uint32(h[80:]), binary.LittleEndian.Uint32(h[84:])
	if length != gptEntrySize || count == 0 || uint64(count)*gptEntrySize > mostEntryBytes {
		return nil, unsound("it claims %d entries of %d bytes", count, length)
	}
	first := binary.LittleEndian.Uint64(h[72:])
	if first > d.lastBlock() {
		return nil, unsound("its entries begin at block %d, and the disk has %d", first, d.lastBlock()+1)
	}
	entries, err := d.read(first*uint64(d.perBlock()), int64(count)*gptEntrySize)
	if errors.Is(err, io.EOF) {
		return nil, unsound("its entries go on beyond the end of the disk")
	}
	if err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(entries) != binary.LittleEndian.Uint32(h[88:]) {
		return nil, unsound("the checksum of its entries is wrong")
	}
	return entries, nil
}

// soundHeader looks at the header alone.
func (d Disk) soundHeader(h []byte, block uint64) error {
	size := binary.LittleEndian.Uint32(h[12:])
	if size < gptHeaderSize || int64(size) > d.Block {
		return unsound("its header claims %d bytes", size)
	}
	sum := crc32.NewIEEE()
	sum.Write(h[:16])
	sum.Write(make([]byte, 4))
	sum.Write(h[20:size])
	if sum.Sum32() != binary.LittleEndian.Uint32(h[16:]) {
		return unsound("the checksum of its header is wrong")
	}
	if at := binary.LittleEndian.Uint64(h[24:]); at != block {
		return unsound("its header is in block %d and says that it belongs in block %d", block, at)
	}
	usable, last := binary.LittleEndian.Uint64(h[40:]), binary.LittleEndian.Uint64(h[48:])
	switch {
	case usable > d.lastBlock() || last > d.lastBlock():
		return unsound("it is of a disk of more than %d blocks of %d bytes, and this one has %d", max(usable, last), d.Block, d.lastBlock()+1)
	case last < usable:
		return unsound("its partitions may begin at block %d and have to end at block %d", usable, last)
	}
	return nil
}

// explainGPT says what is the matter on a disk whose MBR speaks of a GPT and on which
// the kernel finds none, so that it has no partitions at all.
func (d Disk) explainGPT(first []byte) error {
	if !protectsGPT(first) {
		return refusal(extents.Remedy{}, "the MBR speaks of a GPT, and its entry does not begin at block 1: the kernel takes neither for the partition table")
	}
	_, err := d.soundGPT(primaryBlock)
	var why *unsoundError
	if !errors.As(err, &why) {
		return err
	}
	if why.missing {
		for _, size := range []int64{dmtable.SectorSize, 1024, 2048, 4096} {
			other := Disk{ReaderAt: d.ReaderAt, Block: size, Size: d.Size}
			if size == d.Block || primaryBlock > other.lastBlock() {
				continue
			}
			if h, err := other.read(primaryBlock*uint64(other.perBlock()), gptHeaderSize); err == nil && string(h[:8]) == gptSignature {
				return madeFor(size, d.Block, "GPT")
			}
		}
	}
	copied := ""
	if _, err := d.soundGPT(d.lastBlock()); err == nil {
		copied = "; its copy in the last block is whole, and fdisk writes the first one again from it (command w) if it is this disk's"
	}
	if why.missing {
		return refusal(extents.Remedy{}, "the MBR protects a GPT, and there is none%s", copied)
	}
	return refusal(extents.Remedy{}, "there is a GPT that the kernel does not take: %s%s", why.message, copied)
}

// madeFor is the refusal of a table that counts in blocks of another size.
func madeFor(table, disk int64, kind string) *Refusal {
	return refusal(advice.OtherSectors.At(extents.Bytes(table), extents.Bytes(disk)),
		"this %s was made for sectors of %d bytes, and those of the device have %d", kind, table, disk)
}

// guid prints a UUID whose first three parts are stored little-endian.
func guid(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]),
		binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:16])
}
