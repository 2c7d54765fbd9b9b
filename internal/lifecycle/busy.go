package lifecycle

import (
	"errors"
	"strings"
	"time"

	"dmloop/dmtable"
	"dmloop/guard"
	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/record"
)

// openNow lists the mapping's devices that somebody has open, its own partitions
// apart, and refuses when one is in use and the options say nothing of that: before
// anything is undone, so that what is busy keeps its partitions. Something that has one
// open for a moment, as a udev worker does, is waited for.
func (s *System) openNow(conn *dm.Conn, m record.Record, o UnmapOptions) ([]dm.Ref, error) {
	for deadline := time.Now().Add(s.patience.removal); ; time.Sleep(100 * time.Millisecond) {
		open, last, err := s.inUse(conn, m)
		if err != nil || len(open) == 0 || o.Force || o.Deferred {
			return open, err
		}
		if time.Now().After(deadline) || s.heldFirmly(last.Device) {
			return nil, s.busy(last, nil)
		}
	}
}

// inUse lists the mapping's devices that somebody has open, its own partitions apart,
// and what the kernel says of the last of them.
func (s *System) inUse(conn *dm.Conn, m record.Record) (open []dm.Ref, last dm.Info, err error) {
	own := 0 // partitions of ours on top
	for _, ref := range layers(m) {
		info, err := conn.Info(ref)
		if errors.Is(err, dm.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, last, err
		}
		users := info.OpenCount
		if info.UUID == m.UUID {
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

// cutOff lets every further access fail. What users have not written yet is written
// first, unless the blocks may not be ours any more.
func (s *System) cutOff(conn *dm.Conn, m record.Record, before guard.State) error {
	table := dmtable.ErrorTable(m.Table.Size())
	ref := dm.ByUUID(m.UUID)
	if before != guard.Healthy && before != guard.Weakened {
		_, err := conn.ReplaceNow(ref, table, 0)
		return err
	}
	if _, err := conn.Load(ref, table, m.ReadOnly); err != nil {
		return err
	}
	_, err := conn.Resume(ref, dm.ResumeOptions{})
	return err
}

// busy says who uses the device.
func (s *System) busy(info dm.Info, cause error) error {
	return &fault.Error{Class: fault.Busy, Subject: info.Name, Message: "in use by " + s.named(info.Device), Err: cause,
		Remedy: advice.DeferOrForce}
}

// heldFirmly reports whether waiting for the device's users is of no use.
func (s *System) heldFirmly(dev dmtable.Device) bool {
	for _, u := range s.users(dev) {
		if !strings.HasPrefix(u, "process") {
			return true
		}
	}
	return false
}
