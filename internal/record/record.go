// Package record stores one record per mapping under /run/dmloop: what the
// image was, where it lay, which table was loaded, what pins it and what state
// the mapping is in. It calls neither device-mapper nor FIEMAP.
//
// A multi-step change writes its record first and moves it on after each step,
// so that a command that finds the record of a killed one can finish or undo it.
package record

import (
	"time"

	"dmloop/dmtable"
	"dmloop/extents"
	"dmloop/guard"
)

// Version is the version of the stored format. A store with another version is
// refused, never guessed at.
const Version = 1

var states = []guard.State{guard.Mapping, guard.Healthy, guard.Weakened, guard.Stale, guard.Failed, guard.Suspended, guard.Releasing}

// Pin is one thing that keeps the blocks of an image where they are.
type Pin struct {
	Kind guard.PinKind `json:"kind"`
	Ours bool          `json:"ours"` // set by dmloop and undone at unmap; a pin that was there before stays
}

// Image says which file a mapping was made of.
type Image struct {
	Path string `json:"path"` // absolute, as it was when mapped
	guard.FileID
	Size       extents.Bytes `json:"size"`
	Filesystem string        `json:"filesystem"`
	Reflink    bool          `json:"reflink"` // the file system can share extents
	Handle     Handle        `json:"handle"`
	FSUUID     string        `json:"fs_uuid,omitempty"` // of its file system, as blkid prints it; empty when unknown
	Folder     Handle        `json:"folder,omitzero"`   // of the folder that it is in, which an immutable file does not leave
}

// Handle is the file system's own name of an inode (name_to_handle_at(2)); empty
// where it gives none.
type Handle struct {
	Type int32  `json:"type"`
	Hex  string `json:"hex"`
}

// Part is a device of one partition inside a mapping.
type Part struct {
	Name   string `json:"name"`
	Number int    `json:"number"`
}

// Base is a device-mapper table that lies below the image, as it was when mapped.
type Base struct {
	Device dmtable.Device `json:"device"`
	Name   string         `json:"name"`
	UUID   string         `json:"uuid"`
	Table  string         `json:"table"` // dmsetup's text format
}

// Below is a device one layer below the host device, with its name when mapped.
type Below struct {
	Device dmtable.Device `json:"device"`
	Name   string         `json:"name"` // the kernel's, such as "sdb1"
}

// NameBelow returns the name that a device below had when the image was mapped, or
// nothing: records of earlier versions have none.
func (m Record) NameBelow(device dmtable.Device) string {
	for _, b := range m.Below {
		if b.Device == device {
			return b.Name
		}
	}
	return ""
}

// Growing says that a command makes the image of a live mapping longer, or began to.
// Until the record has the layout and the table of the longer image, the live table may be
// the old one only; from then on it is either of both.
type Growing struct {
	From extents.Bytes `json:"from"` // size of the file before
	To   extents.Bytes `json:"to"`   // and after
}

// Record is the stored record of one mapping, a plain value.
type Record struct {
	Version   int            `json:"version"`
	Name      string         `json:"name"`   // device-mapper name, mangled
	UUID      string         `json:"uuid"`   // device-mapper uuid, DMLOOP-<32 hex>-NAME
	Device    dmtable.Device `json:"device"` // of the mapping; 0:0 until it exists
	State     guard.State    `json:"state"`
	Reason    string         `json:"reason,omitempty"` // why State is not healthy
	Image     Image          `json:"image"`
	Offset    extents.Bytes  `json:"offset"` // first mapped byte of the image's content
	Size      extents.Bytes  `json:"size"`   // bytes mapped
	ReadOnly  bool           `json:"ro"`
	Sealed    bool           `json:"sealed"`
	Extents   int            `json:"extents"` // rows in Layout
	Pins      []Pin          `json:"pins"`
	Grade     guard.Grade    `json:"grade"`
	Proof     bool           `json:"proof"` // a write lease proved, once the pins were in force, that nobody else had the file open
	OnChange  guard.Policy   `json:"on_change"`
	UdevRules string         `json:"udev_rules,omitempty"` // "all": udev may put together what the content is a part of
	Guard     bool           `json:"guard"`                // wanted: started with a guard
	Gate      guard.Gate     `json:"gate,omitempty"`       // what denies opens by others; records of earlier versions do not say: the guard then
	Unsafe    bool           `json:"unsafe,omitempty"`
	Parts     []Part         `json:"parts,omitempty"` // partition devices on top, to be removed first
	Growing   *Growing       `json:"growing,omitempty"`
	Created   time.Time      `json:"created"`
	Base      Base           `json:"base"`            // the host device's own table
	Below     []Below        `json:"below,omitempty"` // the devices that the table names
	Layout    extents.Layout `json:"-"`               // of the whole file, clipped and merged
	Table     dmtable.Table  `json:"-"`

	headOnly bool // read by Head: layout and table are not there
}

// PinKinds lists the kinds of the recorded pins, in order.
func (m Record) PinKinds() []guard.PinKind {
	kinds := make([]guard.PinKind, 0, len(m.Pins))
	for _, p := range m.Pins {
		kinds = append(kinds, p.Kind)
	}
	return kinds
}

// OurPins lists the pins that dmloop set on the file, the only ones that it sets again or
// clears. The gate in the kernel is none of the file's: see Gate.
func (m Record) OurPins() (kinds []guard.PinKind) {
	for _, p := range m.Pins {
		if p.Ours && p.Kind != guard.PinBPF {
			kinds = append(kinds, p.Kind)
		}
	}
	return kinds
}
