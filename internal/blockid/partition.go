package blockid

import (
	"errors"

	"dmloop/internal/blockdev"
)

// errNoTable says that a disk has no partition table that is understood.
var errNoTable = errors.New("no GPT or MBR partition table")

// partitionUUID returns what the kernel and udev call PARTUUID of a partition that the
// kernel found. Of a table that is refused it counts what was understood: whether the
// partitions can be used is not the question here.
func partitionUUID(disk blockdev.Disk, number int) (string, error) {
	table, err := blockdev.ReadPartitions(disk)
	if id := table.UUID(number); id != "" {
		return id, nil
	}
	if err == nil {
		err = errNoTable
	}
	return "", err
}
