package lifecycle

import (
	"errors"
	"strings"

	"dmloop/dmtable"
	"dmloop/internal/dm"
	"dmloop/internal/manifest"
)

// openNow lists the mapping's devices that somebody has open, its own partitions
// apart, and refuses when one is in use and the options say nothing of that.
// Something that has it open for a moment, as a udev worker does, is no reason to
// refuse: removing tries again.
func (s *System) openNow(conn *dm.Conn, m manifest.Manifest, o UnmapOptions) ([]dm.Ref, error) {
	var open []dm.Ref
	for _, ref := range layers(m) {
		info, err := conn.Info(ref)
		if errors.Is(err, dm.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		own := 0 // partitions of ours on top
		if info.UUID == m.UUID {
			own = len(m.Parts)
		}
		if info.OpenCount <= own {
			continue
		}
		if !o.Force && !o.Deferred && s.heldFirmly(info.Device) {
			return nil, s.busy(info, nil)
		}
		open = append(open, ref)
	}
	return open, nil
}

// cutOff lets every further access fail. What users have not written yet is written
// first, unless the blocks may not be ours any more.
func (s *System) cutOff(conn *dm.Conn, m manifest.Manifest, before manifest.State) error {
	table := dmtable.ErrorTable(m.Table.Size())
	ref := dm.ByUUID(m.UUID)
	if before != manifest.Healthy && before != manifest.Weakened {
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
	return &Error{Class: Busy, Subject: info.Name, Message: "in use by " + s.named(info.Device), Err: cause,
		Hint: "stop the users, or use --deferred (remove at last close) or --force (let their I/O fail)"}
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
