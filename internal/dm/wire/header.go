// Package wire turns the requests and replies of the device-mapper control
// device from and to bytes. It makes no call: what it reads is checked against
// the length of the buffer first, so it can be tested and fuzzed anywhere.
package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"dmloop/dmtable"
)

// HeaderSize is sizeof(struct dm_ioctl), and where the data of every request and
// reply of this package begins:
//
//	struct dm_ioctl {
//		__u32 version[3];	//   0
//		__u32 data_size;	//  12  whole buffer, header included
//		__u32 data_start;	//  16
//		__u32 target_count;	//  20
//		__s32 open_count;	//  24
//		__u32 flags;		//  28
//		__u32 event_nr;		//  32
//		__u32 padding;		//  36
//		__u64 dev;		//  40
//		char name[128];		//  48
//		char uuid[129];		// 176
//		char data[7];		// 305
//	};
const HeaderSize = 312

const (
	nameAt   = 48
	nameLen  = 128
	uuidAt   = 176
	uuidLen  = 129
	minReply = 305 // offsetof(struct dm_ioctl, data), the data_size of a reply without data
)

// MaxBuffer is the largest buffer in bytes that the kernel takes
// (DM_MAX_TARGETS * DM_MAX_TARGET_PARAMS in drivers/md/dm-core.h).
const MaxBuffer = 1 << 30

// Header is struct dm_ioctl. Encode sends it, DecodeHeader reads the reply.
type Header struct {
	Version     [3]uint32
	DataSize    uint32 // bytes of header and data
	DataStart   uint32 // where the data begins, from the header's first byte
	TargetCount uint32
	OpenCount   int32
	Flags       uint32
	EventNr     uint32
	Device      dmtable.Device // zero means none
	Name        string         // at most dmtable.MaxName bytes
	UUID        string         // at most dmtable.MaxUUID bytes
}

// Encode writes the header to the first HeaderSize bytes of buf, with
// interface version 4.0.0, the length of buf as data size and the data directly
// after the header; Version, DataSize and DataStart of h are not looked at. It
// returns an error, and leaves buf as it was, when name or uuid are too long or
// have a NUL in them, or buf is too short or too long for the kernel.
func (h *Header) Encode(buf []byte) error {
	if len(buf) < HeaderSize || len(buf) > MaxBuffer {
		return fmt.Errorf("request of %d bytes, %d to %d are possible", len(buf), HeaderSize, MaxBuffer)
	}
	if err := checkString("name", h.Name, nameLen); err != nil {
		return err
	}
	if err := checkString("uuid", h.UUID, uuidLen); err != nil {
		return err
	}
	ne := binary.NativeEndian
	clear(buf[:HeaderSize])
	ne.PutUint32(buf[0:], 4)
	ne.PutUint32(buf[12:], uint32(len(buf)))
	ne.PutUint32(buf[16:], HeaderSize)
	ne.PutUint32(buf[20:], h.TargetCount)
	ne.PutUint32(buf[24:], uint32(h.OpenCount))
	ne.PutUint32(buf[28:], h.Flags)
	ne.PutUint32(buf[32:], h.EventNr)
	ne.PutUint64(buf[40:], EncodeDevice(h.Device))
	copy(buf[nameAt:], h.Name)
	copy(buf[uuidAt:], h.UUID)
	return nil
}

func checkString(what, s string, size int) error {
	if len(s) >= size {
		return fmt.Errorf("%s %q is too long: %d bytes, %d are allowed", what, s, len(s), size-1)
	}
	if i := bytes.IndexByte([]byte(s), 0); i >= 0 {
		return fmt.Errorf("%s %q has a NUL", what, s)
	}
	return nil
}

// DecodeHeader reads a reply's header. It returns an error when buf is shorter
// than a header, the interface's major version is not 4, the sizes do not lie
// within buf, or a string does not end.
func DecodeHeader(buf []byte) (Header, error) {
	var h Header
	if len(buf) < HeaderSize {
		return h, fmt.Errorf("reply of %d bytes, a header has %d", len(buf), HeaderSize)
	}
	ne := binary.NativeEndian
	for i := range h.Version {
		h.Version[i] = ne.Uint32(buf[4*i:])
	}
	if h.Version[0] != 4 {
		return h, fmt.Errorf("reply has interface version %d, only 4 is known", h.Version[0])
	}
	h.DataSize = ne.Uint32(buf[12:])
	h.DataStart = ne.Uint32(buf[16:])
	h.TargetCount = ne.Uint32(buf[20:])
	h.OpenCount = int32(ne.Uint32(buf[24:]))
	h.Flags = ne.Uint32(buf[28:])
	h.EventNr = ne.Uint32(buf[32:])
	if h.DataSize < minReply || uint64(h.DataSize) > uint64(len(buf)) {
		return h, fmt.Errorf("reply claims %d of %d bytes", h.DataSize, len(buf))
	}
	var err error
	if h.Device, err = DecodeDevice(ne.Uint64(buf[40:])); err != nil {
		return h, err
	}
	if h.Name, err = cString("name", buf[nameAt:nameAt+nameLen]); err != nil {
		return h, err
	}
	h.UUID, err = cString("uuid", buf[uuidAt:uuidAt+uuidLen])
	return h, err
}

// Data returns the part of a reply's buffer after its header, or nil when it has
// none.
func (h *Header) Data(buf []byte) ([]byte, error) {
	if h.DataSize <= HeaderSize {
		return nil, nil
	}
	if h.DataStart < HeaderSize || h.DataStart > h.DataSize {
		return nil, fmt.Errorf("reply has its data at byte %d of %d", h.DataStart, h.DataSize)
	}
	return buf[h.DataStart:h.DataSize], nil
}

func cString(what string, b []byte) (string, error) {
	end := bytes.IndexByte(b, 0)
	if end < 0 {
		return "", fmt.Errorf("%s in the reply does not end", what)
	}
	return string(b[:end]), nil
}

// EncodeDevice returns the 32-bit form of a dev_t that device-mapper exchanges
// (new_encode_dev in linux/kdev_t.h): eight low bits of the minor, twelve of the
// major, twelve more of the minor.
func EncodeDevice(d dmtable.Device) uint64 {
	return uint64(d.Minor&0xff) | uint64(d.Major&0xfff)<<8 | uint64(d.Minor&^0xff)<<12
}

// DecodeDevice is the reverse of EncodeDevice. A number above 32 bits is an
// error.
func DecodeDevice(dev uint64) (dmtable.Device, error) {
	if dev>>32 != 0 {
		return dmtable.Device{}, fmt.Errorf("reply has the impossible device number %#x", dev)
	}
	return dmtable.Device{
		Major: uint32(dev>>8) & 0xfff,
		Minor: uint32(dev&0xff) | uint32(dev>>12)&0xfff00,
	}, nil
}
