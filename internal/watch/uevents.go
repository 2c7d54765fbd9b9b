package watch

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
)

// DeviceHints is told what the kernel says about block devices.
type DeviceHints interface {
	Device(dev dmtable.Device, action string)
	LostDevices(why string)
}

// Uevents listens to the kernel's messages about block devices
// (NETLINK_KOBJECT_UEVENT). A device whose table is exchanged sends one.
type Uevents struct {
	hints  DeviceHints
	poller *poller
	buf    []byte
}

// kernelGroup is the multicast group of the kernel's own messages; udev's are in
// another one.
const kernelGroup = 1

// NewUevents begins to listen.
func NewUevents(hints DeviceHints) (*Uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("uevents: socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("uevents: bind: %w", err)
	}
	// A burst of partitions must not make the kernel drop messages; more room needs
	// CAP_NET_ADMIN, and without it the loss is noticed and a full check follows.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20); err != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	}
	u := &Uevents{hints: hints, buf: make([]byte, 16<<10)}
	if u.poller, err = newPoller(fd, unix.POLLIN, func() bool { return u.receive(fd) }); err != nil {
		return nil, err
	}
	return u, nil
}

// Close ends the goroutine and closes the socket.
func (u *Uevents) Close() error { return u.poller.close() }

// atOnce bounds how many messages are taken before the poller asks again whether it is
// to end.
const atOnce = 1000

// receive takes the messages that are there.
func (u *Uevents) receive(fd int) bool {
	for range atOnce {
		n, from, err := unix.Recvfrom(fd, u.buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			return true
		case err != nil: // ENOBUFS: the kernel dropped messages
			u.hints.LostDevices("uevents: " + err.Error())
			return errors.Is(err, unix.ENOBUFS)
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue // not from the kernel
		}
		if dev, action, ok := parseUevent(u.buf[:n]); ok {
			u.hints.Device(dev, action)
		}
	}
	return true
}

// parseUevent reads a message of the kernel about a block device:
// "change@/devices/virtual/block/dm-0\0ACTION=change\0SUBSYSTEM=block\0MAJOR=253\0MINOR=0\0..."
func parseUevent(message []byte) (dev dmtable.Device, action string, ok bool) {
	var block, major, minor bool
	for field := range bytes.SplitSeq(message, []byte{0}) {
		key, value, found := bytes.Cut(field, []byte("="))
		if !found {
			continue
		}
		switch string(key) {
		case "ACTION":
			action = string(value)
		case "SUBSYSTEM":
			block = string(value) == "block"
		case "MAJOR":
			dev.Major, major = number(value)
		case "MINOR":
			dev.Minor, minor = number(value)
		}
	}
	return dev, action, block && major && minor && action != ""
}

func number(b []byte) (uint32, bool) {
	n, err := strconv.ParseUint(string(b), 10, 32)
	return uint32(n), err == nil
}
