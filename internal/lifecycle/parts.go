package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/internal/advice"
	"dmloop/internal/blockdev"
	"dmloop/internal/fault"
	"dmloop/internal/mapper"
	"dmloop/internal/record"
)

// addPartitions makes a device of each partition that the mapped image's own table
// names. Device-mapper devices get none from the kernel.
func (j *mapJob) addPartitions(context.Context) error {
	if !j.options.PartScan {
		return nil
	}
	found, err := j.readPartitions("/dev/mapper/" + j.m.Name)
	if err != nil {
		remedy := advice.NoPartScan
		if refused := (*blockdev.Refusal)(nil); errors.As(err, &refused) && refused.Remedy != (extents.Remedy{}) {
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
		if err := j.conn.Make(part.Name, mapper.PartUUID(part.Number, j.m.UUID), table, j.m.ReadOnly, mapper.UdevFlags(j.m)); err != nil {
			return fmt.Errorf("partition %d: %w", p.Number, err)
		}
	}
	return nil
}

// readPartitions reads the partition table of a device as the kernel does with a loop
// device of the same file.
func (j *mapJob) readPartitions(path string) ([]blockdev.Partition, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	forced, err := blockdev.KernelForcesGPT()
	if err != nil {
		return nil, err
	}
	table, err := blockdev.ReadPartitions(blockdev.Disk{ReaderAt: f, ForceGPT: forced,
		Block: int64(j.survey.Stack.LogicalBlock()), Size: dmtable.Sectors(j.m.Size / dmtable.SectorSize)})
	for _, note := range table.Notes {
		j.log.Warn(note, "device", path)
	}
	return table.Partitions, err
}
