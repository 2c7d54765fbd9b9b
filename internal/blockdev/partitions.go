package blockdev

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
)

// Disk is what a partition table is read from.
type Disk struct {
	io.ReaderAt
	Block    int64           // its logical block size in bytes: both kinds of tables count in it
	Size     dmtable.Sectors // of the whole disk
	ForceGPT bool            // what KernelForcesGPT says
}

// scheme is the kind of a partition table, 0 where there is none.
type scheme int

const (
	schemeGPT scheme = iota + 1
	schemeMBR
)

// PartitionTable is what the kernel makes of the partition table on a disk: the same table
// is chosen, and its partitions get the same numbers, starts and sizes. What the kernel
// finds no partitions in has none here either, or is refused with what stands there;
// nothing is ever shown that the kernel does not show. What stands on a disk may be a
// stranger's.
type PartitionTable struct {
	Partitions []Partition // by number
	Notes      []string    // what the kernel leaves out or cuts off, for people

	scheme    scheme
	signature uint32 // of the disk with an MBR
}

// Partition is a part of a disk, in sectors of 512 bytes from the disk's beginning.
type Partition struct {
	Number        int // 1 to 255
	Start, Length dmtable.Sectors

	uuid string // of a GPT
}

// mostPartitions is the highest number of a partition (DISK_MAX_PARTS in linux/genhd.h,
// less the disk itself).
const mostPartitions = 255

// UUID returns what the kernel and udev call PARTUUID of a partition: of a GPT the
// unique GUID of its entry, of an MBR the disk's signature and the number. It is empty
// where there is none.
func (t PartitionTable) UUID(number int) string {
	switch {
	case number < 1 || number > mostPartitions:
	case t.scheme == schemeMBR:
		return fmt.Sprintf("%08x-%02x", t.signature, number)
	case t.scheme == schemeGPT:
		if i := slices.IndexFunc(t.Partitions, func(p Partition) bool { return p.Number == number }); i >= 0 {
			return t.Partitions[i].uuid
		}
	}
	return ""
}

// Refusal is the error about a table of which no partition is to be shown. The kernel
// shows none of them, or others than the table means, or it reads the table by rules
// that are not known here.
type Refusal struct {
	Message string
	Remedy  extents.Remedy // what to do; zero where nothing helps
}

func (r *Refusal) Error() string { return r.Message }

func refusal(remedy extents.Remedy, format string, args ...any) *Refusal {
	return &Refusal{Message: fmt.Sprintf(format, args...), Remedy: remedy}
}

// ReadPartitions returns the partition table of a disk: the kinds are tried in the
// kernel's order (block/partitions/core.c). A disk without a table gives an empty one.
// With a refusal comes what was understood before, without partitions.
func ReadPartitions(d Disk) (PartitionTable, error) {
	if d.Block < dmtable.SectorSize || d.Block&(d.Block-1) != 0 {
		return PartitionTable{}, fmt.Errorf("impossible logical block size %d", d.Block)
	}
	if int64(d.Size) < d.perBlock() {
		return PartitionTable{}, nil
	}
	first, err := d.sector(0)
	if err != nil {
		return PartitionTable{}, err
	}
	if d.ForceGPT || protectsGPT(first) {
		if t, err := d.readGPT(); err != nil || t.scheme == schemeGPT {
			return t, err
		}
	}
	if sgiLabel(first) {
		return PartitionTable{}, refusal(advice.UseKpartx, "there is an SGI disk label")
	}
	return d.readMBR(first)
}

// perBlock is how many sectors a logical block has.
func (d Disk) perBlock() int64 { return d.Block / dmtable.SectorSize }

// lastBlock is the number of the last logical block.
func (d Disk) lastBlock() uint64 { return uint64(int64(d.Size)/d.perBlock()) - 1 }

// sector reads one sector of 512 bytes. Numbers beyond the end give io.EOF.
func (d Disk) sector(number uint64) ([]byte, error) {
	return d.read(number, dmtable.SectorSize)
}

// read reads count bytes from a sector on.
func (d Disk) read(sector uint64, count int64) ([]byte, error) {
	sectors := uint64(count+dmtable.SectorSize-1) / dmtable.SectorSize
	if size := uint64(d.Size); sector >= size || sectors > size-sector {
		return nil, io.EOF
	}
	b := make([]byte, count)
	if n, err := d.ReadAt(b, int64(sector)*dmtable.SectorSize); int64(n) < count {
		return nil, fmt.Errorf("read of %d bytes at sector %d: %w", count, sector, err)
	}
	return b, nil
}

// keep takes a partition over as blk_add_partition of the kernel does: none that is
// empty or begins beyond the end, and one that goes on beyond it is cut there.
func (t *PartitionTable) keep(d Disk, p Partition) {
	switch {
	case p.Length == 0 || p.Number > mostPartitions:
		return
	case p.Start >= d.Size:
		t.Notes = append(t.Notes, fmt.Sprintf("partition %d begins beyond the end and is left out", p.Number))
		return
	case p.Length > d.Size-p.Start:
		t.Notes = append(t.Notes, fmt.Sprintf("partition %d goes on for %d bytes beyond the end and is cut there",
			p.Number, (p.Start+p.Length-d.Size)*dmtable.SectorSize))
		p.Length = d.Size - p.Start
	}
	t.Partitions = append(t.Partitions, p)
}

// sgiLabel reports whether the first sector is an SGI disk label (block/partitions/sgi.c),
// which the kernel looks for before an MBR.
func sgiLabel(first []byte) bool {
	sum := uint32(0)
	for at := 0; at < len(first); at += 4 {
		sum += binary.BigEndian.Uint32(first[at:])
	}
	return binary.BigEndian.Uint32(first) == 0x0be5a941 && sum == 0
}

// KernelForcesGPT reports whether the kernel runs with the parameter "gpt", with which it
// takes a GPT without an MBR that protects it, and the copy where the first is broken.
func KernelForcesGPT() (bool, error) {
	line, err := os.ReadFile("/proc/cmdline")
	return forcesGPT(string(line)), err
}

func forcesGPT(cmdline string) bool { return slices.Contains(strings.Fields(cmdline), "gpt") }
