// Package parttable reads the partition table of a disk as the Linux kernel does: the
// same table is chosen, and its partitions get the same numbers, starts and sizes. What
// the kernel finds no partitions in has none here either, or is refused with what stands
// there; nothing is ever shown that the kernel does not show. What stands on a disk may
// be a stranger's.
package parttable

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

// Disk is what the table is read from.
type Disk struct {
	io.ReaderAt
	Block    int64           // its logical block size in bytes: both kinds of tables count in it
	Size     dmtable.Sectors // of the whole disk
	ForceGPT bool            // what KernelForces says
}

// Scheme is the kind of a partition table.
type Scheme string

// The kinds that are read.
const (
	None Scheme = ""
	GPT  Scheme = "gpt"
	MBR  Scheme = "dos"
)

// Table is what stands on a disk.
type Table struct {
	Scheme     Scheme
	Partitions []Partition // by number
	Notes      []string    // what the kernel leaves out or cuts off, for people

	signature uint32 // of the disk with an MBR
}

// Partition is a part of the disk.
type Partition struct {
	Number        int
	Start, Length dmtable.Sectors

	uuid string // of a GPT
}

// most is the highest number of a partition (DISK_MAX_PARTS in linux/genhd.h, less the
// disk itself).
const most = 255

// UUID returns what the kernel and udev call PARTUUID of a partition: of a GPT the
// unique GUID of its entry, of an MBR the disk's signature and the number. It is empty
// where there is none.
func (t Table) UUID(number int) string {
	switch {
	case number < 1 || number > most:
	case t.Scheme == MBR:
		return fmt.Sprintf("%08x-%02x", t.signature, number)
	case t.Scheme == GPT:
		if i := slices.IndexFunc(t.Partitions, func(p Partition) bool { return p.Number == number }); i >= 0 {
			return t.Partitions[i].uuid
		}
	}
	return ""
}

// Reason is why a table is refused, in a word.
type Reason string

// The reasons.
const (
	SectorSize Reason = "sector-size" // made for sectors of another size
	Missing    Reason = "missing"     // protected, and not there
	Damaged    Reason = "damaged"
	TooLarge   Reason = "too-large" // of a larger disk
	Looping    Reason = "looping"   // a chain that comes back to itself
	Foreign    Reason = "foreign"   // a kind that is not read here
)

// Refusal is the error about a table of which no partition is to be shown. The kernel
// shows none of them, or others than the table means, or it reads the table by rules
// that are not known here.
type Refusal struct {
	Reason  Reason
	Message string
	Remedy  extents.Remedy // what to do; may be zero
}

func (r *Refusal) Error() string { return r.Message }

func refusal(reason Reason, remedy extents.Remedy, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Message: fmt.Sprintf(format, args...), Remedy: remedy}
}

// Read returns the partition table of a disk: the kinds are tried in the kernel's order
// (block/partitions/core.c). A disk without a table gives an empty one. With a refusal
// comes what was understood before, without partitions.
func Read(d Disk) (Table, error) {
	if d.Block < dmtable.SectorSize || d.Block&(d.Block-1) != 0 {
		return Table{}, fmt.Errorf("impossible logical block size %d", d.Block)
	}
	if int64(d.Size) < d.perBlock() {
		return Table{}, nil
	}
	first, err := d.sector(0)
	if err != nil {
		return Table{}, err
	}
	if d.ForceGPT || protective(first) {
		if t, err := d.readGPT(); err != nil || t.Scheme == GPT {
			return t, err
		}
	}
	if sgi(first) {
		return Table{}, refusal(Foreign, advice.UseKpartx, "there is an SGI disk label")
	}
	return d.readMBR(first)
}

// noRemedy is where nothing helps.
var noRemedy extents.Remedy

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
func (t *Table) keep(d Disk, p Partition) {
	switch {
	case p.Length == 0 || p.Number > most:
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

// sgi reports whether the first sector is an SGI disk label (block/partitions/sgi.c),
// which the kernel looks for before an MBR.
func sgi(first []byte) bool {
	sum := uint32(0)
	for at := 0; at < len(first); at += 4 {
		sum += binary.BigEndian.Uint32(first[at:])
	}
	return binary.BigEndian.Uint32(first) == 0x0be5a941 && sum == 0
}

// KernelForces reports whether the kernel runs with the parameter "gpt", with which it
// takes a GPT without an MBR that protects it, and the copy where the first is broken.
func KernelForces() (bool, error) {
	line, err := os.ReadFile("/proc/cmdline")
	return forced(string(line)), err
}

func forced(cmdline string) bool { return slices.Contains(strings.Fields(cmdline), "gpt") }
