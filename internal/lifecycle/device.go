package lifecycle

import (
	"errors"
	"slices"
	"strings"
	"time"

	"dmloop/dmtable"
	"dmloop/internal/dm"
	"dmloop/internal/record"
	"dmloop/internal/udev"
)

// resume makes the loaded table live and returns when the device's links are there.
// Flags are for udev's rules.
func (s *System) resume(conn *dm.Conn, name, uuid string, dev dmtable.Device, flags udev.Flags) error {
	t, err := udev.Begin(s.log)
	if err != nil {
		return err
	}
	info, err := conn.Resume(dm.ByUUID(uuid), dm.ResumeOptions{EventNr: t.AddWith(flags)})
	if err != nil {
		return errors.Join(err, t.Fail(), t.Wait())
	}
	if !info.UeventGenerated {
		t.Done()
	}
	if err := t.Wait(); err != nil {
		s.log.Warn("udev did not confirm the new device in time; making its link here", "device", name, "error", err)
	}
	return udev.EnsureLink(name, dev)
}

// udevFlags are the flags of a mapping and of what is made of its content: it must not
// take the links of another disk, whatever its image holds.
func udevFlags(m record.Record) udev.Flags {
	if m.UdevRules == UdevAll {
		return udev.LowPriority | udev.UseContent
	}
	return udev.LowPriority
}

// busyError says that a device is open, and so cannot be removed.
type busyError struct {
	info dm.Info
	err  error
}

func (e *busyError) Error() string { return "the device is in use" }
func (e *busyError) Unwrap() error { return e.err }

// removeDevice removes the device with this uuid, and reports whether it is gone; a
// device that is not there is gone, and one whose removal is pending is not. It
// tries for a while and fails with *busyError.
func (s *System) removeDevice(conn *dm.Conn, name, uuid string) (gone bool, err error) {
	deadline := time.Now().Add(s.patience.removal)
	for {
		info, err := conn.Info(dm.ByUUID(uuid))
		if errors.Is(err, dm.ErrNotFound) {
			s.unlink(name)
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if info.DeferredRemove {
			return false, nil
		}
		err = s.removeOnce(conn, uuid, false)
		if err == nil || errors.Is(err, dm.ErrNotFound) {
			s.unlink(info.Name)
			s.unlink(name) // somebody may have renamed the device
			return true, nil
		}
		if !errors.Is(err, dm.ErrBusy) {
			return false, err
		}
		if time.Now().After(deadline) || s.heldFirmly(info.Device) {
			return false, &busyError{info, err}
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// unlink removes what led to the device. What somebody put in the place of the link
// is not ours to remove, and keeps nothing else from being released.
func (s *System) unlink(name string) {
	if err := udev.Unlink(name); err != nil {
		s.log.Warn("the device is gone, the path to it is not", "device", name, "error", err)
	}
}

func (s *System) removeOnce(conn *dm.Conn, uuid string, deferred bool) error {
	t, err := udev.Begin(s.log)
	if err != nil {
		return err
	}
	info, err := conn.Remove(dm.ByUUID(uuid), dm.RemoveOptions{Deferred: deferred, EventNr: t.Add()})
	if err != nil {
		return errors.Join(err, t.Fail(), t.Wait())
	}
	if !info.UeventGenerated {
		t.Done()
	}
	if err := t.Wait(); err != nil {
		s.log.Warn("udev did not confirm the removal in time", "uuid", uuid, "error", err)
	}
	return nil
}

// liveDevices lists the device-mapper devices whose uuid says that they are mappings.
func (s *System) liveDevices(conn *dm.Conn) ([]dm.Entry, error) {
	all, err := conn.List()
	return slices.DeleteFunc(all, func(d dm.Entry) bool { return !strings.HasPrefix(d.UUID, record.UUIDPrefix) }), err
}
