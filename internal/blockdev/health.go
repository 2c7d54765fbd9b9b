package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"dmloop/dmtable"
	"dmloop/internal/dm"
)

// Health is what is known of a device without a request to it, which might never
// come back.
type Health struct {
	Name     string          // the kernel's, such as "sdb"; empty when the device is gone
	Size     dmtable.Sectors // 0 when it is lost
	Lost     string          // why no request will ever reach it again, or empty
	Ailing   string          // why requests fail for now, or empty
	ReadOnly bool            // itself, or one that its writes go to
}

// ReadHealth reads the health of a device and of those that it hands its requests on
// to. Sysfs is /sys except in tests; where there is none, nothing is known, which is an
// error.
func ReadHealth(sysfs string, src TableSource, number dmtable.Device) (Health, error) {
	if _, err := os.Stat(filepath.Join(sysfs, "dev", "block")); err != nil {
		return Health{}, err
	}
	d, err := openFolder(sysfs, number)
	if errors.Is(err, fs.ErrNotExist) {
		return Health{Lost: "is gone"}, nil
	}
	if err != nil {
		return Health{}, err
	}
	h, err := d.health()
	if errors.Is(err, fs.ErrNotExist) { // while it was read
		return Health{Lost: "is gone"}, nil
	}
	if err != nil || h.Lost != "" {
		return h, err
	}
	_, table, mapped, err := walk{sysfs, src}.table(d)
	if errors.Is(err, dm.ErrNotFound) {
		return Health{Lost: "is gone"}, nil
	}
	if err != nil || !mapped {
		return h, err
	}
	if len(table) > 0 && table.Equal(dmtable.ErrorTable(table.Size())) {
		h.Lost = "gives errors only (error table)"
		return h, nil
	}
	return h, h.below(sysfs, src, writesGoTo(table))
}

// health reads what the device's own folder, and that of its disk, say.
func (d folder) health() (h Health, err error) {
	h.Name = d.name()
	if h.Size, err = d.size(); err != nil {
		return h, err
	}
	readOnly, err := d.number64("ro")
	if err != nil {
		return h, err
	}
	h.ReadOnly = readOnly != 0
	if h.Size == 0 {
		h.Lost = "has no sectors any more"
		return h, nil
	}
	disk, _, err := d.disk()
	if err != nil {
		return h, err
	}
	state, err := disk.text("device/state") // of SCSI and NVMe; others have none
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return h, err
	case state == "offline" || state == "transport-offline":
		h.Ailing = "is " + state
	case state == "cancel" || state == "del" || state == "deleting" || state == "deleting (no IO)" || state == "dead":
		h.Lost = "is being removed (" + state + ")"
	}
	return h, nil
}

// below adds what is wrong with the devices that requests are handed on to. Of several
// the image may lie on a sound one.
func (h *Health) below(sysfs string, src TableSource, devices []dmtable.Device) error {
	lost := ""
	for _, number := range devices {
		b, err := ReadHealth(sysfs, src, number)
		if err != nil {
			return err
		}
		h.ReadOnly = h.ReadOnly || b.ReadOnly
		switch {
		case b.Lost != "":
			lost = fmt.Sprintf("stands on %s, which %s", Named(number, b.Name), b.Lost)
		case b.Ailing != "":
			h.Ailing = fmt.Sprintf("stands on %s, which %s", Named(number, b.Name), b.Ailing)
		}
	}
	if lost != "" && len(devices) == 1 {
		h.Lost = lost
	} else if lost != "" {
		h.Ailing = lost
	}
	return nil
}

// Named returns a device's number with its name, if it has one.
func Named(number dmtable.Device, name string) string {
	if name == "" {
		return number.String()
	}
	return fmt.Sprintf("%s (%s)", number, name)
}
