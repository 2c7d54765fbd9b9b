package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/parttable"
	"dmloop/internal/record"
)

// partUUID is the device-mapper uuid of a partition inside a mapping, as kpartx
// forms it.
func partUUID(number int, mapping string) string { return fmt.Sprintf("part%d-%s", number, mapping) }

// addPartitions makes a device of each partition that the mapped image's own table
// names. Device-mapper devices get none from the kernel.
func (j *mapJob) addPartitions(context.Context) error {
	if !j.options.PartScan {
		return nil
	}
	found, err := j.readPartitions("/dev/mapper/" + j.m.Name)
	if err != nil {
		remedy := advice.NoPartScan
		if refused := (*parttable.Refusal)(nil); errors.As(err, &refused) && refused.Remedy != (extents.Remedy{}) {
			remedy = refused.Remedy
		}
		return &fault.Error{Class: fault.Failed, Subject: j.survey.Path, Message: "its partition table cannot be used", Err: err, Remedy: remedy}
	}
	for _, p := range found {
		part := record.Part{Name: fmt.Sprintf("%sp%d", j.m.Name, p.Number), Number: p.Number}
		j.m.Parts = append(j.m.Parts, part)
		if err := j.store.SaveHead(j.m); err != nil {
			return err
		}
		table, err := dmtable.Build([]dmtable.Segment{{Device: j.m.Device, Start: p.Start, Length: p.Length}})
		if err != nil {
			return err
		}
		if err := j.makeDevice(j.conn, part.Name, partUUID(part.Number, j.m.UUID), table, j.m.ReadOnly, udevFlags(j.m)); err != nil {
			return fmt.Errorf("partition %d: %w", p.Number, err)
		}
	}
	return nil
}

// readPartitions reads the partition table of a device as the kernel does with a loop
// device of the same file.
func (j *mapJob) readPartitions(path string) ([]parttable.Partition, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	forced, err := parttable.KernelForces()
	if err != nil {
		return nil, err
	}
	table, err := parttable.Read(parttable.Disk{ReaderAt: f, ForceGPT: forced,
		Block: int64(j.survey.Stack.LogicalBlock()), Size: dmtable.Sectors(j.m.Size / dmtable.SectorSize)})
	for _, note := range table.Notes {
		j.log.Warn(note, "device", path)
	}
	return table.Partitions, err
}

// removeParts removes the partition devices on top of a mapping, last first.
func (s *System) removeParts(conn *dm.Conn, m *record.Record) error {
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
func layers(m record.Record) []dm.Ref {
	var refs []dm.Ref
	for i := len(m.Parts) - 1; i >= 0; i-- {
		refs = append(refs, dm.ByUUID(partUUID(m.Parts[i].Number, m.UUID)))
	}
	return append(refs, dm.ByUUID(m.UUID))
}
