package mapper

import (
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"dmloop/dmtable"
	"dmloop/internal/dm"
	"dmloop/internal/fault"
	"dmloop/internal/record"
	"dmloop/internal/udev"
)

// GoLive makes the loaded table of a device live and returns when the device's links are
// there. Flags are for udev's rules.
func (m *Mapper) GoLive(name, uuid string, dev dmtable.Device, flags udev.Flags) error {
	if err := m.resume(name, uuid, dm.ResumeOptions{}, flags); err != nil {
		return err
	}
	return udev.EnsureLink(name, dev)
}

// Exchange makes the loaded table of a running device live in place of the one that it has.
// What is on its way is written first, and a file system on the device is not frozen for it.
func (m *Mapper) Exchange(name, uuid string, flags udev.Flags) error {
	return m.resume(name, uuid, dm.ResumeOptions{SkipLockFS: true}, flags)
}

// resume returns when udev has handled the event.
func (m *Mapper) resume(name, uuid string, o dm.ResumeOptions, flags udev.Flags) error {
	t, err := udev.Begin(m.Log)
	if err != nil {
		return err
	}
	o.EventNr = t.AddWith(flags)
	info, err := m.Resume(dm.ByUUID(uuid), o)
	if err != nil {
		return errors.Join(err, t.Fail(), t.Wait())
	}
	if !info.UeventGenerated {
		t.Done()
	}
	if err := t.Wait(); err != nil {
		m.Log.Warn("udev did not confirm the device in time", "device", name, "error", err)
	}
	return nil
}

// The choices of map's --udev-rules, as records keep them.
const (
	UdevLinks = "links" // make links that lead to it, and put nothing together of what is inside
	UdevAll   = "all"   // all that the rules do to any other disk
)

// UdevFlags are the flags of a mapping and of what is made of its content: it must not
// take the links of another disk, whatever its image holds.
func UdevFlags(r record.Record) udev.Flags {
	if r.UdevRules == UdevAll {
		return udev.LowPriority | udev.UseContent
	}
	return udev.LowPriority
}

// Make creates, loads and resumes a device, and removes it when a step fails.
func (m *Mapper) Make(name, uuid string, table dmtable.Table, readOnly bool, flags udev.Flags) error {
	info, err := m.Create(name, uuid)
	if err != nil {
		return err
	}
	_, err = m.Load(dm.ByUUID(uuid), table, readOnly)
	if err == nil {
		err = m.GoLive(name, uuid, info.Device, flags)
	}
	if err != nil {
		_, undo := m.RemoveDevice(name, uuid)
		return errors.Join(err, undo)
	}
	return nil
}

// Link makes the link to a live device where it is missing: whoever made the device may
// have been killed before it.
func (m *Mapper) Link(name string) error {
	if _, err := os.Stat(Folder + name); err == nil {
		return nil
	}
	info, err := m.Info(dm.ByName(name))
	if err == nil {
		err = udev.EnsureLink(name, info.Device)
	}
	return fault.Wrap(name, "", err)
}

// BusyError says that a device is open, and so cannot be removed.
type BusyError struct {
	Info dm.Info // of the device that is open
	Err  error
}

func (e *BusyError) Error() string { return "the device is in use" }

// Unwrap returns what the kernel answered.
func (e *BusyError) Unwrap() error { return e.Err }

// RemoveDevice removes the device with this uuid, and reports whether it is gone; a device
// that is not there is gone, and one whose removal is pending is not. It tries for as long
// as the mapper's patience and fails with *BusyError then.
func (m *Mapper) RemoveDevice(name, uuid string) (gone bool, err error) {
	deadline := time.Now().Add(m.Patience)
	for {
		info, err := m.Info(dm.ByUUID(uuid))
		if errors.Is(err, dm.ErrNotFound) {
			m.unlink(name)
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if info.DeferredRemove {
			return false, nil
		}
		err = m.removeOnce(uuid, false)
		if err == nil || errors.Is(err, dm.ErrNotFound) {
			m.unlink(info.Name)
			m.unlink(name) // somebody may have renamed the device
			return true, nil
		}
		if !errors.Is(err, dm.ErrBusy) {
			return false, err
		}
		if time.Now().After(deadline) || m.HeldFirmly(info.Device) {
			return false, &BusyError{info, err}
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// unlink removes what led to the device. What somebody put in the place of the link
// is not ours to remove, and keeps nothing else from being released.
func (m *Mapper) unlink(name string) {
	if err := udev.Unlink(name); err != nil {
		m.Log.Warn("the device is gone, the path to it is not", "device", name, "error", err)
	}
}

func (m *Mapper) removeOnce(uuid string, deferred bool) error {
	t, err := udev.Begin(m.Log)
	if err != nil {
		return err
	}
	info, err := m.Remove(dm.ByUUID(uuid), dm.RemoveOptions{Deferred: deferred, EventNr: t.Add()})
	if err != nil {
		return errors.Join(err, t.Fail(), t.Wait())
	}
	if !info.UeventGenerated {
		t.Done()
	}
	if err := t.Wait(); err != nil {
		m.Log.Warn("udev did not confirm the removal in time", "uuid", uuid, "error", err)
	}
	return nil
}

// Mappings lists the device-mapper devices whose uuid says that they are mappings.
func (m *Mapper) Mappings() ([]dm.Entry, error) {
	all, err := m.List()
	return slices.DeleteFunc(all, func(d dm.Entry) bool { return !strings.HasPrefix(d.UUID, record.UUIDPrefix) }), err
}
