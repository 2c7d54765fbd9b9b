package wire

import (
	"encoding/binary"
	"fmt"

	"dmloop/dmtable"
)

// Device is one entry of a DM_LIST_DEVICES reply.
type Device struct {
	Name      string
	UUID      string // empty when the device has none, or HasUUID is false
	HasUUID   bool   // the kernel told whether there is a uuid (since 5.13)
	Device    dmtable.Device
	EventNr   uint32
	entrySize int
}

// Flags in the second word after an entry's name.
const (
	uuidPresent = 1 // DM_NAME_LIST_FLAG_HAS_UUID
	uuidAbsent  = 2 // DM_NAME_LIST_FLAG_DOESNT_HAVE_UUID
)

// Minor versions of the interface that brought the fields.
const (
	eventNrSince = 37 // Linux 4.14
	uuidSince    = 45 // Linux 5.13
)

// ParseList reads the data of a DM_LIST_DEVICES reply of a kernel with this minor
// interface version:
//
//	struct dm_name_list {
//		__u64 dev;	//  0
//		__u32 next;	//  8  from this entry; 0 in the last one
//		char name[];	// 12
//		// aligned to 8:
//		uint32_t event_nr;
//		uint32_t flags;
//		char uuid[];	// only with DM_NAME_LIST_FLAG_HAS_UUID
//	};
//
// It returns an error when an entry does not lie within data or a string does not
// end.
func ParseList(data []byte, minorVersion uint32) ([]Device, error) {
	var list []Device
	for {
		if len(data) < 12 {
			return nil, fmt.Errorf("list entry %d does not lie within the reply", len(list))
		}
		next := int64(binary.NativeEndian.Uint32(data[8:]))
		if next == 0 && len(list) == 0 && binary.NativeEndian.Uint64(data) == 0 {
			return nil, nil // no devices
		}
		entry, err := parseEntry(data, minorVersion)
		if err != nil {
			return nil, fmt.Errorf("list entry %d: %w", len(list), err)
		}
		list = append(list, entry)
		if next == 0 {
			return list, nil
		}
		if next < int64(entry.entrySize) || next > int64(len(data)) {
			return nil, fmt.Errorf("list entry %d does not lie within the reply", len(list))
		}
		data = data[next:]
	}
}

func parseEntry(data []byte, minorVersion uint32) (Device, error) {
	dev, err := DecodeDevice(binary.NativeEndian.Uint64(data))
	if err != nil {
		return Device{}, err
	}
	name, err := cString("name", data[12:])
	if err != nil {
		return Device{}, err
	}
	e := Device{Name: name, Device: dev, entrySize: 12 + len(name) + 1}
	if minorVersion < eventNrSince {
		return e, nil
	}
	at := Align(e.entrySize)
	if len(data) < at+8 {
		return Device{}, fmt.Errorf("event number does not lie within the reply")
	}
	e.EventNr = binary.NativeEndian.Uint32(data[at:])
	flags := binary.NativeEndian.Uint32(data[at+4:])
	e.entrySize = at + 8
	if minorVersion < uuidSince {
		return e, nil
	}
	e.HasUUID = flags&(uuidPresent|uuidAbsent) != 0
	if flags&uuidPresent != 0 {
		if e.UUID, err = cString("uuid", data[e.entrySize:]); err != nil {
			return Device{}, err
		}
		e.entrySize += len(e.UUID) + 1
	}
	return e, nil
}

// ParseDeps reads the data of a DM_TABLE_DEPS reply, the devices that a table
// names, each once:
//
//	struct dm_target_deps {
//		__u32 count;	//  0
//		__u32 padding;	//  4
//		__u64 dev[];	//  8
//	};
//
// It returns an error when the devices do not lie within data.
func ParseDeps(data []byte) ([]dmtable.Device, error) {
	if len(data) < 8 {
		return nil, fmt.Errorf("reply of %d bytes has no devices", len(data))
	}
	count := uint64(binary.NativeEndian.Uint32(data))
	data = data[8:]
	if count*8 > uint64(len(data)) {
		return nil, fmt.Errorf("reply claims %d devices and has room for %d", count, len(data)/8)
	}
	devices := make([]dmtable.Device, count)
	for i := range devices {
		var err error
		if devices[i], err = DecodeDevice(binary.NativeEndian.Uint64(data[8*i:])); err != nil {
			return nil, err
		}
	}
	return devices, nil
}
