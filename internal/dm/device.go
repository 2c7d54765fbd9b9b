package dm

import (
	"fmt"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/dm/wire"
)

// Create makes a device without a table. Name and uuid must pass
// dmtable.CheckName and dmtable.CheckUUID; uuid may be empty. A name or uuid that
// is taken is ErrExists.
func (c *Conn) Create(name, uuid string) (Info, error) {
	if err := dmtable.CheckName(name); err != nil {
		return Info{}, &Error{Op: reqCreate.Name, Name: name, Err: err}
	}
	if err := dmtable.CheckUUID(uuid); err != nil {
		return Info{}, &Error{Op: reqCreate.Name, Name: name, Err: err}
	}
	return c.simple(call{req: reqCreate, ref: ByName(name), newUUID: uuid})
}

// Load puts the table into the device's inactive slot, in place of one that waits
// there; the active table stays. Resume makes it live. With readOnly the base
// devices are opened for reading only and the device becomes read-only. A table
// that Validate refuses never reaches the kernel; a base device that somebody
// else uses exclusively is ErrBusy.
func (c *Conn) Load(ref Ref, table dmtable.Table, readOnly bool) (Info, error) {
	if err := table.Validate(dmtable.Limits{}); err != nil {
		return Info{}, &Error{Op: reqLoad.Name, Name: ref.String(), Err: err}
	}
	buf := c.buffer(wire.HeaderSize + wire.TableSize(table))
	defer c.release(buf)
	if err := wire.PutTable(buf[wire.HeaderSize:], table); err != nil {
		return Info{}, &Error{Op: reqLoad.Name, Name: ref.String(), Err: err}
	}
	load := call{req: reqLoad, ref: ref, targets: uint32(len(table))}
	if readOnly {
		load.flags |= unix.DM_READONLY_FLAG
	}
	h, err := c.do(load, buf)
	if err != nil {
		return Info{}, err
	}
	return newInfo(h), nil
}

// Clear drops the table that waits in the inactive slot, if there is one.
func (c *Conn) Clear(ref Ref) (Info, error) {
	return c.simple(call{req: reqClear, ref: ref})
}

// ResumeOptions say how a live table is exchanged for the inactive one, and what
// the uevent carries.
type ResumeOptions struct {
	NoFlush    bool   // do not wait for the queue to be written through the old table
	SkipLockFS bool   // do not freeze (and so flush) a file system on the device
	EventNr    uint32 // udev flags and cookie for the uevent; 0 for none
}

// Resume makes the inactive table live, if there is one, and lets I/O through. A
// running device is suspended for it and resumed by the same request.
func (c *Conn) Resume(ref Ref, o ResumeOptions) (Info, error) {
	return c.simple(call{req: reqSuspend, ref: ref, flags: suspendFlags(o.NoFlush, o.SkipLockFS), eventNr: o.EventNr})
}

// SuspendOptions say what is left out before the device stands still.
type SuspendOptions struct {
	NoFlush    bool // requests that wait stay queued instead of being written first
	SkipLockFS bool // do not freeze (and so flush) a file system on the device
}

// Suspend stops I/O: what comes from now on waits until Resume.
func (c *Conn) Suspend(ref Ref, o SuspendOptions) (Info, error) {
	return c.simple(call{req: reqSuspend, ref: ref, flags: unix.DM_SUSPEND_FLAG | suspendFlags(o.NoFlush, o.SkipLockFS)})
}

func suspendFlags(noFlush, skipLockFS bool) uint32 {
	var flags uint32
	if noFlush {
		flags |= unix.DM_NOFLUSH_FLAG
	}
	if skipLockFS {
		flags |= unix.DM_SKIP_LOCKFS_FLAG
	}
	return flags
}

// ReplaceNow loads the table and makes it live without flushing or freezing
// anything, so that nothing more is written through the old table than is on its
// way already. It is meant for tearing down with dmtable.ErrorTable. When the
// second step fails the loaded table is cleared again.
func (c *Conn) ReplaceNow(ref Ref, table dmtable.Table, eventNr uint32) (Info, error) {
	if _, err := c.Load(ref, table, false); err != nil {
		return Info{}, err
	}
	info, err := c.Resume(ref, ResumeOptions{NoFlush: true, SkipLockFS: true, EventNr: eventNr})
	if err != nil {
		if _, undo := c.Clear(ref); undo != nil {
			return Info{}, fmt.Errorf("%w; and the loaded table stays: %w", err, undo)
		}
		return Info{}, err
	}
	return info, nil
}

// RemoveOptions say when a device goes.
type RemoveOptions struct {
	Deferred bool   // if it is open, remove it when the last user closes it
	EventNr  uint32 // udev flags and cookie for the uevent; 0 for none
}

// Remove removes the device. An open one is ErrBusy, or with Deferred goes later:
// then DeferredRemove is set in the returned Info, and no uevent has been
// generated yet.
func (c *Conn) Remove(ref Ref, o RemoveOptions) (Info, error) {
	remove := call{req: reqRemove, ref: ref, eventNr: o.EventNr}
	if o.Deferred {
		remove.flags |= unix.DM_DEFERRED_REMOVE
	}
	return c.simple(remove)
}

// Rename gives the device a new name, which must pass dmtable.CheckName and be
// free, otherwise it is ErrExists. EventNr is as in ResumeOptions.
func (c *Conn) Rename(ref Ref, newName string, eventNr uint32) (Info, error) {
	if err := dmtable.CheckName(newName); err != nil {
		return Info{}, &Error{Op: reqRename.Name, Name: ref.String(), Err: err}
	}
	buf := make([]byte, wire.HeaderSize+wire.Align(len(newName)+1))
	copy(buf[wire.HeaderSize:], newName)
	h, err := c.do(call{req: reqRename, ref: ref, eventNr: eventNr}, buf)
	if err != nil {
		return Info{}, err
	}
	return newInfo(h), nil
}
