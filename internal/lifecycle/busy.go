package lifecycle

import (
	"time"

	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/mapper"
	"dmloop/internal/record"
)

// openNow lists the mapping's devices that somebody has open, its own partitions
// apart, and refuses when one is in use and the options say nothing of that: before
// anything is undone, so that what is busy keeps its partitions. Something that has one
// open for a moment, as a udev worker does, is waited for.
func openNow(conn *mapper.Mapper, m record.Record, o UnmapOptions) ([]dm.Ref, error) {
	for deadline := time.Now().Add(conn.Patience); ; time.Sleep(100 * time.Millisecond) {
		open, last, err := conn.InUse(m)
		if err != nil || len(open) == 0 || o.Force || o.Deferred {
			return open, err
		}
		if time.Now().After(deadline) || conn.HeldFirmly(last.Device) {
			return nil, usedBy(conn, last, nil)
		}
	}
}

// usedBy says who uses the device.
func usedBy(conn *mapper.Mapper, info dm.Info, cause error) error {
	return &fault.Error{Class: fault.Busy, Subject: info.Name, Message: "in use by " + conn.Named(info.Device), Err: cause,
		Remedy: advice.DeferOrForce}
}
