package dm

import (
	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/dm/wire"
)

// Info is what the kernel tells about a device with every reply.
type Info struct {
	Name            string
	UUID            string // empty when it has none
	Device          dmtable.Device
	OpenCount       int    // how often it is open: mounts, tables of other devices, programs
	EventNr         uint32 // counts table events, creation and renames
	TargetCount     int    // rows of the active table, or of the one asked for
	Suspended       bool
	ReadOnly        bool
	ActiveTable     bool // a table is live
	InactiveTable   bool // a table is loaded and waits for Resume
	DeferredRemove  bool // the device goes when its last user closes it
	UeventGenerated bool // this request made the kernel send a uevent
}

func newInfo(h wire.Header) Info {
	has := func(bit uint32) bool { return h.Flags&bit != 0 }
	return Info{
		Name:            h.Name,
		UUID:            h.UUID,
		Device:          h.Device,
		OpenCount:       int(h.OpenCount),
		EventNr:         h.EventNr,
		TargetCount:     int(h.TargetCount),
		Suspended:       has(unix.DM_SUSPEND_FLAG),
		ReadOnly:        has(unix.DM_READONLY_FLAG),
		ActiveTable:     has(unix.DM_ACTIVE_PRESENT_FLAG),
		InactiveTable:   has(unix.DM_INACTIVE_PRESENT_FLAG),
		DeferredRemove:  has(unix.DM_DEFERRED_REMOVE),
		UeventGenerated: has(unix.DM_UEVENT_GENERATED_FLAG),
	}
}

// simple makes a request that has no data.
func (c *Conn) simple(call call) (Info, error) {
	h, err := c.do(call, make([]byte, wire.HeaderSize))
	if err != nil {
		return Info{}, err
	}
	return newInfo(h), nil
}

// Version returns the version of the kernel's interface: major, minor and patch
// level.
func (c *Conn) Version() ([3]uint32, error) {
	h, err := c.do(call{req: reqVersion}, make([]byte, wire.HeaderSize))
	return h.Version, err
}

// Info returns the state of a device. No such device is ErrNotFound.
func (c *Conn) Info(ref Ref) (Info, error) {
	return c.simple(call{req: reqInfo, ref: ref})
}
