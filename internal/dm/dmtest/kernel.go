// Package dmtest is a device-mapper in memory for tests: it answers the requests
// of internal/dm byte for byte as the kernel would, records them, and fails the
// ones it is told to fail.
package dmtest

import (
	"sync"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/internal/dm"
	"dmloop/internal/dm/wire"
	"dmloop/internal/ioctl"
)

// Major is the major number of the fake's devices.
const Major = 253

// Call is one recorded request.
type Call struct {
	Op      string // the ioctl's name, such as "DM_TABLE_LOAD"
	Name    string // the device, by name where it exists
	Flags   uint32 // as sent
	EventNr uint32 // as sent
	Err     error  // what the fake answered: nil or an errno
}

// Device is the state of one device of the fake.
type Device struct {
	Name, UUID       string
	Device           dmtable.Device
	Active, Inactive dmtable.Table // nil for none
	OpenCount        int
	EventNr          uint32
	Suspended        bool
	ReadOnly         bool
	Deferred         bool // removal waits for the last close
	inactiveReadOnly bool
}

// Kernel is the fake. Its methods may be used by several goroutines at once.
type Kernel struct {
	mu      sync.Mutex
	devices map[string]*Device
	minor   uint32
	calls   []Call
	seen    int // requests since the last FailNth
	failAt  int // 0 for none
	failErr unix.Errno
	version [3]uint32
}

// New returns a fake without devices that sends uevents and speaks version
// 4.48.0, as Linux 6.12 does.
func New() *Kernel {
	return &Kernel{
		devices: map[string]*Device{},
		version: [3]uint32{4, 48, 0},
	}
}

// Conn returns a connection to the fake.
func (k *Kernel) Conn() *dm.Conn { return dm.NewConn(k.Exchange) }

// FailNth makes the nth request from now on (the first is 1) fail with errno,
// without any effect, and the others succeed again. 0 takes a failure back.
func (k *Kernel) FailNth(n int, errno unix.Errno) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen, k.failAt, k.failErr = 0, n, errno
}

// SetVersion makes the fake behave as this version of the interface where it
// matters: what DM_LIST_DEVICES tells.
func (k *Kernel) SetVersion(major, minor, patch uint32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.version = [3]uint32{major, minor, patch}
}

// SetOpen sets how often the device is open. At 0 a deferred removal happens.
func (k *Kernel) SetOpen(name string, count int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[name]
	if d == nil {
		return
	}
	d.OpenCount = count
	if count == 0 && d.Deferred {
		delete(k.devices, name)
	}
}

// Device returns a copy of the device's state, and whether it exists.
func (k *Kernel) Device(name string) (Device, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[name]
	if d == nil {
		return Device{}, false
	}
	return *d, true
}

// Len returns how many devices there are.
func (k *Kernel) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.devices)
}

// Calls returns the requests so far and forgets them.
func (k *Kernel) Calls() []Call {
	k.mu.Lock()
	defer k.mu.Unlock()
	calls := k.calls
	k.calls = nil
	return calls
}

// Exchange answers one request in place. It is what Conn uses.
func (k *Kernel) Exchange(req ioctl.Request, buf []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	h, err := wire.DecodeHeader(buf)
	if err != nil || int(h.DataSize) != len(buf) {
		return &ioctl.Error{Request: req.Name, Err: unix.EINVAL}
	}
	k.seen++
	var errno unix.Errno
	name := h.Name
	if d := k.find(h); d != nil {
		name = d.Name
	}
	if k.seen == k.failAt {
		errno = k.failErr
	} else {
		errno = k.answer(req, h, buf)
	}
	call := Call{Op: req.Name, Name: name, Flags: h.Flags, EventNr: h.EventNr}
	if errno != 0 {
		call.Err = errno
	}
	k.calls = append(k.calls, call)
	if errno != 0 {
		return &ioctl.Error{Request: req.Name, Err: errno}
	}
	return nil
}

// find returns the device that the header names by exactly one of name, uuid and
// number, or nil.
func (k *Kernel) find(h wire.Header) *Device {
	if h.Name != "" {
		if h.UUID != "" || h.Device != (dmtable.Device{}) {
			return nil
		}
		return k.devices[h.Name]
	}
	for _, d := range k.devices {
		if h.UUID != "" && d.UUID == h.UUID || h.UUID == "" && d.Device == h.Device {
			return d
		}
	}
	return nil
}
