package lifecycle

import (
	"fmt"
	"os"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition"
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

// readPartitions reads the GPT or MBR of a device. Every partition must lie on
// sector borders inside the device: a table that does not is not believed at all.
func (j *mapJob) readPartitions(path string) ([]area, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	block := int(j.survey.Stack.LogicalBlock())
	table, err := partition.Read(file.New(f, true), block, block)
	if err != nil {
		return nil, err
	}
	var found []area
	for _, p := range table.GetPartitions() {
		if m, ok := p.(*mbr.Partition); ok {
			switch m.Type {
			case mbr.Empty:
				continue
			case mbr.ExtendedCHS, mbr.ExtendedLBA, mbr.LinuxExtended:
				j.log.Warn("logical partitions get no devices; use kpartx for them", "device", path)
				continue
			}
		}
		start, size := p.GetStart(), p.GetSize()
		if start <= 0 || size <= 0 || start%dmtable.SectorSize != 0 || size%dmtable.SectorSize != 0 ||
			size > int64(j.m.Size) || start > int64(j.m.Size)-size {
			return nil, fmt.Errorf("partition %d has %d bytes from byte %d, the device has %d bytes", p.GetIndex(), size, start, j.m.Size)
		}
		found = append(found, area{p.GetIndex(), dmtable.Sectors(start / dmtable.SectorSize), dmtable.Sectors(size / dmtable.SectorSize)})
	}
	return found, nil
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
