package blockdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
)

// The kinds of entries that the kernel treats in a way of their own.
const (
	kindProtective = 0xee
	kindLDM        = 0x42
)

var (
	extendedKinds = []byte{0x05, 0x0f, 0x85}
	// slicedKinds have tables of their own inside: Minix, BSD, Unixware, Solaris. (0x82
	// may be Solaris too, and hardly ever is.)
	slicedKinds = []byte{0x63, 0x81, 0xa5, 0xa6, 0xa9, 0xbf}
)

// mbrEntry is one of the four of an MBR.
type mbrEntry struct {
	boot, kind   byte
	start, count uint64 // in logical blocks
}

func (e mbrEntry) extended() bool { return slices.Contains(extendedKinds, e.kind) }

func mbrEntries(sector []byte) (all [4]mbrEntry) {
	for i := range all {
		b := sector[446+16*i:]
		all[i] = mbrEntry{b[0], b[4], uint64(binary.LittleEndian.Uint32(b[8:])), uint64(binary.LittleEndian.Uint32(b[12:]))}
	}
	return all
}

// signedMBR reports whether a sector ends as that of every MBR does, and as many boot
// sectors of file systems do.
func signedMBR(sector []byte) bool { return sector[510] == 0x55 && sector[511] == 0xaa }

// readMBR reads the partitions of an MBR (msdos_partition in block/partitions/msdos.c).
func (d Disk) readMBR(first []byte) (PartitionTable, error) {
	entries := mbrEntries(first)
	if !signedMBR(first) {
		return PartitionTable{}, nil
	}
	if foreign, err := d.foreignMBR(first, entries); err != nil || foreign {
		return PartitionTable{}, err
	}
	for _, e := range entries {
		if e.boot != 0 && e.boot != 0x80 {
			return PartitionTable{}, nil // the boot sector of FAT, NTFS and others: code or text stands there
		}
	}
	if slices.ContainsFunc(entries[:], func(e mbrEntry) bool { return e.kind == kindProtective }) {
		return PartitionTable{}, d.explainGPT(first)
	}
	t := PartitionTable{scheme: schemeMBR, signature: binary.LittleEndian.Uint32(first[440:])}
	per := uint64(d.perBlock())
	next := 5
	for i, e := range entries {
		p := Partition{Number: i + 1, Start: dmtable.Sectors(e.start * per), Length: dmtable.Sectors(e.count * per)}
		if !e.extended() {
			t.keep(d, p)
			continue
		}
		if e.count == 0 {
			continue
		}
		// Of the partition that holds the others the kernel shows the first KiB, or block,
		// so that no file system gets made on it.
		p.Length = min(p.Length, dmtable.Sectors(max(per, 2)))
		t.keep(d, p)
		if err := d.readLogical(&t, &next, e.start*per, e.count*per); err != nil {
			return PartitionTable{scheme: schemeMBR, signature: t.signature}, err
		}
	}
	if d.countsInSectors(entries, t) {
		return PartitionTable{scheme: schemeMBR, signature: t.signature}, madeFor(dmtable.SectorSize, d.Block, "MBR")
	}
	for i, e := range entries {
		if e.count > 0 && slices.Contains(slicedKinds, e.kind) {
			t.Notes = append(t.Notes, fmt.Sprintf("partition %d is of type %#x: partitions inside it get no devices", i+1, e.kind))
		}
	}
	slices.SortFunc(t.Partitions, func(a, b Partition) int { return a.Number - b.Number })
	return t, nil
}

// foreignMBR reports whether a sector that looks like an MBR is something else to the
// kernel, without partitions (AIX). Windows' dynamic disks are refused: the kernel reads
// the partitions of those elsewhere.
func (d Disk) foreignMBR(first []byte, entries [4]mbrEntry) (bool, error) {
	if slices.ContainsFunc(entries[:], func(e mbrEntry) bool { return e.kind == kindLDM }) {
		// The private header of block/partitions/ldm.c.
		private, err := d.sector(6)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if err == nil && string(private[:8]) == "PRIVHEAD" {
			return false, refusal(advice.UseLdmtool, "this is a dynamic disk of Windows")
		}
	}
	linux := func(e mbrEntry) bool { return e.extended() || slices.Contains([]byte{0x82, 0x83, 0x8e, 0xfd}, e.kind) }
	if string(first[:4]) != "\xc9\xc2\xd4\xc1" || slices.ContainsFunc(entries[:], linux) {
		return false, nil
	}
	volumes, err := d.sector(7)
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	return err == nil && string(volumes[:4]) == "_LVM", err
}

// mostLinks is how many links of the chain the kernel follows without a partition.
const mostLinks = 100

// readLogical follows the chain of logical partitions in an extended one, which lies
// at first and has size sectors (parse_extended).
func (d Disk) readLogical(t *PartitionTable, next *int, first, size uint64) error {
	at, room := first, size
	seen := map[uint64]bool{}
	for links := 1; links <= mostLinks && *next <= mostPartitions; links++ {
		if seen[at] {
			return refusal(extents.Remedy{}, "the chain of logical partitions comes back to sector %d", at)
		}
		seen[at] = true
		sector, err := d.sector(at)
		if errors.Is(err, io.EOF) {
			t.Notes = append(t.Notes, "the chain of logical partitions goes on beyond the end")
			return nil
		}
		if err != nil {
			return err
		}
		if !signedMBR(sector) {
			return nil
		}
		entries := mbrEntries(sector)
		for i, e := range entries {
			start, count := e.start*uint64(d.perBlock()), e.count*uint64(d.perBlock())
			if count == 0 || e.extended() {
				continue
			}
			if outside := start+count > room || at+start+count > first+size; i >= 2 && outside {
				continue // the last two entries may be anything
			}
			t.keep(d, Partition{Number: *next, Start: dmtable.Sectors(at + start), Length: dmtable.Sectors(count)})
			links = 0
			if *next++; *next > mostPartitions {
				return nil
			}
		}
		i := slices.IndexFunc(entries[:], func(e mbrEntry) bool { return e.count > 0 && e.extended() })
		if i < 0 {
			return nil
		}
		at, room = first+entries[i].start*uint64(d.perBlock()), entries[i].count*uint64(d.perBlock())
	}
	return nil
}

// countsInSectors reports whether an MBR on a disk of larger blocks was made for sectors
// of 512 bytes: taken as blocks its partitions leave the disk, and as sectors all fit.
func (d Disk) countsInSectors(entries [4]mbrEntry, t PartitionTable) bool {
	return d.Block > dmtable.SectorSize && len(t.Notes) > 0 && !slices.ContainsFunc(entries[:], func(e mbrEntry) bool {
		return e.start+e.count > uint64(d.Size)
	})
}
