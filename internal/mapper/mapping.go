package mapper

import (
	"errors"
	"fmt"

	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/internal/dm"
	"dmloop/internal/record"
)

// PartUUID is the device-mapper uuid of a partition inside a mapping, as kpartx
// forms it.
func PartUUID(number int, mapping string) string { return fmt.Sprintf("part%d-%s", number, mapping) }

// InUse lists the mapping's devices that somebody has open, its own partitions apart,
// and what the kernel says of the last of them.
func (m *Mapper) InUse(r record.Record) (open []dm.Ref, last dm.Info, err error) {
	own := 0 // partitions of ours on top
	for _, ref := range Layers(r) {
		info, err := m.Info(ref)
		if errors.Is(err, dm.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, last, err
		}
		users := info.OpenCount
		if info.UUID == r.UUID {
			users -= own
		} else {
			own++
		}
		if users > 0 {
			open, last = append(open, ref), info
		}
	}
	return open, last, nil
}

// CutOff makes every further access fail. What users have not written yet is written
// first, unless the blocks may not be ours any more.
func (m *Mapper) CutOff(r record.Record, before guard.State) error {
	table := dmtable.ErrorTable(r.Table.Size())
	ref := dm.ByUUID(r.UUID)
	if before != guard.Healthy && before != guard.Weakened {
		_, err := m.ReplaceNow(ref, table, 0)
		return err
	}
	if _, err := m.Load(ref, table, r.ReadOnly); err != nil {
		return err
	}
	_, err := m.Resume(ref, dm.ResumeOptions{})
	return err
}

// RemoveWhenClosed makes the kernel remove a mapping's devices as soon as nobody has them
// open, now perhaps.
func (m *Mapper) RemoveWhenClosed(r record.Record) error {
	for _, ref := range Layers(r) {
		info, err := m.Info(ref)
		if err == nil && !info.DeferredRemove {
			err = m.removeOnce(info.UUID, true)
		}
		if err != nil && !errors.Is(err, dm.ErrNotFound) {
			return err
		}
	}
	return nil
}

// Pending reports whether the kernel removes a device of the mapping at its last close.
func (m *Mapper) Pending(r record.Record) bool {
	for _, ref := range Layers(r) {
		if info, err := m.Info(ref); err == nil && info.DeferredRemove {
			return true
		}
	}
	return false
}

// ErrPending says that the kernel removes a device once its last user closes it.
var ErrPending = errors.New("removal is pending until the last user closes the device")

// RemoveParts removes the partition devices on top of a mapping, last first.
func (m *Mapper) RemoveParts(r *record.Record) error {
	for i := len(r.Parts) - 1; i >= 0; i-- {
		p := r.Parts[i]
		gone, err := m.RemoveDevice(p.Name, PartUUID(p.Number, r.UUID))
		if err == nil && !gone {
			err = ErrPending
		}
		if err != nil {
			return fmt.Errorf("partition %s: %w", p.Name, err)
		}
	}
	return nil
}

// Layers lists the devices of a mapping, what lies on top first.
func Layers(r record.Record) []dm.Ref {
	var refs []dm.Ref
	for i := len(r.Parts) - 1; i >= 0; i-- {
		refs = append(refs, dm.ByUUID(PartUUID(r.Parts[i].Number, r.UUID)))
	}
	return append(refs, dm.ByUUID(r.UUID))
}
