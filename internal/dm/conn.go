// Package dm talks to the kernel's device-mapper through its control device: it
// creates, loads, resumes, suspends, renames, removes and lists devices and
// reads their tables. It decides nothing: no retries, no policy, no udev.
package dm

import (
	"fmt"
	"log/slog"
	"os"
	"sync"

	"dmloop/dmtable"
	"dmloop/internal/dm/wire"
	"dmloop/internal/ioctl"
)

// Conn is an open control device. Its methods may be used by several goroutines
// at once. Every error of a method is a *Error.
type Conn struct {
	exchange Exchange
	file     *os.File
	log      *slog.Logger
	buffers  sync.Pool // of *[]byte: large buffers to be used again
}

// Exchange makes one ioctl: the request in buf goes to the kernel, and the reply
// replaces it. It returns nil or an error that wraps an errno.
type Exchange func(req ioctl.Request, buf []byte) error

// NewConn returns a Conn that makes its ioctls with exchange, as dmtest does.
// Programs use Open.
func NewConn(exchange Exchange) *Conn { return &Conn{exchange: exchange} }

// SetLogger makes the Conn write one line at level Debug to log for each ioctl,
// in the manner of strace. Call it before the Conn is used. nil is silence.
func (c *Conn) SetLogger(log *slog.Logger) { c.log = log }

// Close closes the control device.
func (c *Conn) Close() error {
	if c.file == nil {
		return nil
	}
	return c.file.Close()
}

// Ref names a device to the kernel in one of three ways. The zero value names
// none and is refused.
type Ref struct {
	name, uuid string
	device     dmtable.Device
}

// ByName names the device by its (mangled) name.
func ByName(name string) Ref { return Ref{name: name} }

// ByUUID names the device by its whole uuid.
func ByUUID(uuid string) Ref { return Ref{uuid: uuid} }

// ByDevice names the device by its major and minor number.
func ByDevice(device dmtable.Device) Ref { return Ref{device: device} }

// String returns the name, the uuid or major:minor, for messages, and "none" for
// the zero value.
func (r Ref) String() string {
	switch {
	case r == (Ref{}):
		return "none"
	case r.name != "":
		return r.name
	case r.uuid != "":
		return r.uuid
	}
	return r.device.String()
}

// pooledFrom is the size in bytes from which buffers are kept: the table of a
// fragmented image takes megabytes, whose first use costs more than clearing them.
const pooledFrom = 32 << 10

// buffer returns a buffer of size bytes, all zero. Give it back with release.
func (c *Conn) buffer(size int) []byte {
	if size >= pooledFrom {
		if kept, ok := c.buffers.Get().(*[]byte); ok && cap(*kept) >= size {
			buf := (*kept)[:size]
			clear(buf)
			return buf
		}
	}
	return make([]byte, size)
}

// release takes a buffer back that nothing refers to any more.
func (c *Conn) release(buf []byte) {
	if cap(buf) >= pooledFrom {
		c.buffers.Put(&buf)
	}
}

// call is one request, before it is encoded.
type call struct {
	req     ioctl.Request
	ref     Ref
	newUUID string // for the creation, which takes name and uuid
	flags   uint32
	eventNr uint32
	targets uint32
	like    dmtable.Table // the table that the reply is expected to have
}

// do makes one ioctl with buf, whose part after the header the caller has
// filled, and returns the decoded reply. No other function of this package
// reaches the kernel.
func (c *Conn) do(call call, buf []byte) (wire.Header, error) {
	fail := func(err error) (wire.Header, error) {
		return wire.Header{}, &Error{Op: call.req.Name, Name: call.ref.String(), Err: err}
	}
	if call.ref == (Ref{}) && call.req != reqVersion && call.req != reqList {
		return fail(fmt.Errorf("no device is named"))
	}
	h := wire.Header{
		TargetCount: call.targets,
		Flags:       call.flags,
		EventNr:     call.eventNr,
		Device:      call.ref.device,
		Name:        call.ref.name,
		UUID:        call.ref.uuid + call.newUUID,
	}
	if err := h.Encode(buf); err != nil {
		return fail(err)
	}
	err := c.exchange(call.req, buf)
	if err != nil {
		c.trace(call, len(buf), wire.Header{}, err)
		return fail(errno(err))
	}
	reply, err := wire.DecodeHeader(buf)
	c.trace(call, len(buf), reply, err)
	if err != nil {
		return fail(err)
	}
	return reply, nil
}
