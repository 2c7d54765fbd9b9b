package lifecycle

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/diskfs/go-diskfs/partition/mbr"

	"dmloop/dmtable"
	"dmloop/internal/dm"
	"dmloop/internal/manifest"
)

// partUUID is the device-mapper uuid of a partition inside a mapping, as kpartx
// forms it.
func partUUID(number int, mapping string) string { return fmt.Sprintf("part%d-%s", number, mapping) }

// addPartitions makes a device of each partition that the mapped image's own table
// names. Device-mapper devices get none from the kernel.
func (j *mapJob) addPartitions() error {
	if !j.options.PartScan {
		return nil
	}
	found, err := j.readPartitions("/dev/mapper/" + j.m.Name)
	if err != nil {
		return &Error{Class: Failure, Subject: j.survey.Path, Message: "its partition table cannot be used", Err: err,
			Hint: "map it without --partscan"}
	}
	for _, p := range found {
		part := manifest.Part{Name: fmt.Sprintf("%sp%d", j.m.Name, p.number), Number: p.number}
		j.m.Parts = append(j.m.Parts, part)
		if err := j.store.SaveHead(j.m); err != nil {
			return err
		}
		table, err := dmtable.Build([]dmtable.Segment{{Device: j.m.Device, Start: p.start, Length: p.length}})
		if err != nil {
			return err
		}
		if err := j.makeDevice(j.conn, part.Name, partUUID(part.Number, j.m.UUID), table, j.m.ReadOnly); err != nil {
			return fmt.Errorf("partition %d: %w", p.number, err)
		}
	}
	return nil
}

// area is a partition inside an image, in sectors.
type area struct {
	number        int
	start, length dmtable.Sectors
}

// mostParts is how many partitions of one disk the kernel knows (DISK_MAX_PARTS in
// linux/genhd.h, less the disk itself).
const mostParts = 255

// readPartitions reads the GPT or MBR of a device; one without either has no
// partitions. Every partition must lie inside the
// device: a table of which that is not true is not believed at all. What stands in it
// may be a stranger's.
func (j *mapJob) readPartitions(path string) ([]area, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if signed, err := bootSignature(f); !signed || err != nil {
		return nil, err
	}
	block := int64(j.survey.Stack.LogicalBlock())
	if err := checkGPT(f, block); err != nil {
		return nil, err
	}
	table, err := partition.Read(file.New(f, true), int(block), int(block))
	if err != nil {
		return nil, err
	}
	var found []area
	for _, p := range table.GetPartitions() {
		var start, count uint64 // in blocks: an MBR counts in them too, as kpartx and the kernel read it
		switch p := p.(type) {
		case *gpt.Partition:
			start, count = p.Start, p.End+1-p.Start
		case *mbr.Partition:
			switch p.Type {
			case mbr.Empty:
				continue
			case mbr.ExtendedCHS, mbr.ExtendedLBA, mbr.LinuxExtended:
				j.log.Warn("logical partitions get no devices; use kpartx for them", "device", path)
				continue
			case mbr.GPTProtective:
				return nil, errors.New("there is a GPT, and it is damaged")
			}
			start, count = uint64(p.Start), uint64(p.Size)
		}
		if blocks := uint64(int64(j.m.Size) / block); start == 0 || count == 0 || start > blocks || count > blocks-start {
			return nil, fmt.Errorf("partition %d has %d blocks of %d bytes from block %d, the device has %d bytes", p.GetIndex(), count, block, start, j.m.Size)
		}
		if len(found) == mostParts {
			return nil, fmt.Errorf("there are more than %d partitions", mostParts)
		}
		sectors := uint64(block / dmtable.SectorSize)
		found = append(found, area{p.GetIndex(), dmtable.Sectors(start * sectors), dmtable.Sectors(count * sectors)})
	}
	return found, nil
}

// mostEntries is how many entries a GPT may have: the kernel reads no more than 4 MiB
// of them (block/partitions/efi.c).
const mostEntries = 4 << 20 / gpt.PartitionEntrySize

// checkGPT looks at how many entries the header of a GPT claims, and its copy in the
// last block: whoever reads the table takes memory for all of them.
func checkGPT(f *os.File, block int64) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	for _, at := range []int64{block, size/block*block - block} {
		header := make([]byte, 92)
		if _, err := f.ReadAt(header, at); err != nil || string(header[:8]) != "EFI PART" {
			continue // the reader says what is wrong
		}
		count, length := binary.LittleEndian.Uint32(header[80:]), binary.LittleEndian.Uint32(header[84:])
		if length != gpt.PartitionEntrySize || count > mostEntries {
			return fmt.Errorf("the GPT at byte %d claims %d entries of %d bytes", at, count, length)
		}
	}
	return nil
}

// bootSignature reports whether the first sector ends as that of every MBR does, the
// one that protects a GPT among them.
func bootSignature(f io.ReaderAt) (bool, error) {
	sector := make([]byte, dmtable.SectorSize)
	if _, err := f.ReadAt(sector, 0); err != nil {
		return false, err
	}
	return bytes.HasSuffix(sector, []byte{0x55, 0xaa}), nil
}

// removeParts removes the partition devices on top of a mapping, last first.
func (s *System) removeParts(conn *dm.Conn, m *manifest.Manifest) error {
	for i := len(m.Parts) - 1; i >= 0; i-- {
		p := m.Parts[i]
		gone, err := s.removeDevice(conn, p.Name, partUUID(p.Number, m.UUID))
		if err == nil && !gone {
			err = errPending
		}
		if err != nil {
			return fmt.Errorf("partition %s: %w", p.Name, err)
		}
	}
	return nil
}

// layers lists the devices of a mapping, what lies on top first.
func layers(m manifest.Manifest) []dm.Ref {
	var refs []dm.Ref
	for i := len(m.Parts) - 1; i >= 0; i-- {
		refs = append(refs, dm.ByUUID(partUUID(m.Parts[i].Number, m.UUID)))
	}
	return append(refs, dm.ByUUID(m.UUID))
}
