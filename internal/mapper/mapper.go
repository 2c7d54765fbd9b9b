// Package mapper makes, removes and looks at block devices: the steps of device-mapper and
// udev that belong together, who uses a device, and which live devices lie on the same
// sectors. It knows no image.
package mapper

import (
	"errors"
	"log/slog"
	"time"

	"dmloop/internal/advice"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
)

// Folder is where the devices' links are.
const Folder = "/dev/mapper/"

// Patience is how long udev workers and scanners, which have a device open for a moment,
// are waited for.
const Patience = 5 * time.Second

// Mapper is a connection to device-mapper with what belongs to it.
type Mapper struct {
	*dm.Conn
	Log      *slog.Logger
	Sysfs    string        // where sysfs is mounted
	Patience time.Duration // for those who have a device open for a moment
}

// Open connects to the kernel's device-mapper. The error says what is missing.
func Open(log *slog.Logger) (*Mapper, error) {
	conn, err := dm.Open()
	switch {
	case errors.Is(err, dm.ErrNoDeviceMapper):
		return nil, &fault.Error{Class: fault.KernelLacks, Message: "this kernel has no device-mapper",
			Remedy: advice.LoadDeviceMapper, Err: err}
	case errors.Is(err, dm.ErrPermission):
		return nil, &fault.Error{Class: fault.NotPermitted, Message: "device-mapper needs root", Remedy: fault.Permission(fault.CapAdmin), Err: err}
	case err != nil:
		return nil, err
	}
	conn.SetLogger(log)
	return &Mapper{Conn: conn, Log: log, Sysfs: "/sys", Patience: Patience}, nil
}
