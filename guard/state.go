package guard

import (
	"dmloop/dmtable"
	"dmloop/extents"
)

// FileID says which file it is. It is comparable. How far two of them mean the same file
// depends on what lies between: see its methods.
type FileID struct {
	Major      uint32 `json:"major"` // of st_dev; may be another one after the next mount
	Minor      uint32 `json:"minor"`
	Inode      uint64 `json:"inode"`
	Generation uint32 `json:"generation"` // of the inode number; 0 when the file system does not tell
	Birth      int64  `json:"birth"`      // when the inode was made, in nanoseconds since 1970; 0 when the file system does not tell
}

// Device returns the number of the file system that the file is on (st_dev).
func (f FileID) Device() dmtable.Device { return dmtable.Device{Major: f.Major, Minor: f.Minor} }

// SameInode reports whether both are one inode, which says that they are the same file as
// long as one of them is open.
func (f FileID) SameInode(g FileID) bool { return f.Device() == g.Device() && f.Inode == g.Inode }

// SameFile reports whether both are the same file of a file system that stayed mounted in
// between: an inode number that was given again has another generation.
func (f FileID) SameFile(g FileID) bool { return f.SameInode(g) && f.Generation == g.Generation }

// SameElsewhere reports whether both are the same file by what no mount changes, whatever
// the device's number. What one of them does not tell (a zero) is not compared. Whether the
// file system is the same, and no copy, it cannot know.
func (f FileID) SameElsewhere(g FileID) bool {
	return f.Inode == g.Inode &&
		(f.Generation == g.Generation || f.Generation == 0 || g.Generation == 0) &&
		(f.Birth == g.Birth || f.Birth == 0 || g.Birth == 0)
}

// Identity is which file an image is, and what else of it must not change.
type Identity struct {
	FileID
	Size  extents.Bytes
	Links uint64 // names the file has; compared with 0 only
}

// Base is the host device: its own table, which says where our rows come from.
type Base struct {
	Device    dmtable.Device
	UUID      string
	Table     string // dmsetup's text format
	Suspended bool
	Waiting   bool // another table is loaded and becomes live with the next resume
	Stopped   bool // it is a mapping itself, and was found different
}

// Below is what is known of a device that rows of the mapping lie on.
type Below struct {
	Device   string // as messages name it
	Size     dmtable.Sectors
	Lost     string // why no request will ever reach it again, or empty
	Ailing   string // why requests fail for now, or empty
	ReadOnly bool
}

// Pins is what holds the image's blocks, and what that is worth.
type Pins struct {
	InForce []PinKind
	Grade   Grade
	// Tries is how often f2fs's garbage collector met the pin; at Limit it drops it.
	Tries, Limit uint32
}

// Claim is how much of a sealed image the kernel uses as swap space: one page is meant.
type Claim struct{ Size, Page extents.Bytes }

// Openers says who else has the image open, as write leases show it.
type Openers int

// The answers, harmless first.
const (
	Alone   Openers = iota // nobody else
	Untold                 // leases do not work here
	Readers                // somebody, for reading only
	Writers                // somebody, for writing
)

// OwnState is the state of the mapping's device without its rows.
type OwnState struct {
	Gone      bool // no such device
	Suspended bool
	Waiting   bool // another table is loaded and becomes live with the next resume
}

// Expected is what was recorded when the image was mapped.
type Expected struct {
	Name     string
	Identity Identity // Links is not compared
	Layout   extents.Layout
	Pins     Pins
	Exposed  bool // a reader can share the blocks (xfs with reflink): readers weaken
	Base     Base // Suspended, Waiting and Stopped are not compared
	Table    dmtable.Table
	Needs    map[dmtable.Device]dmtable.Sectors // how many sectors of each device below the rows need
	ReadOnly bool                               // the mapping is, so that it does not matter when a device below is
	Policy   Policy
}

// Reading is one part of the state: a value, an error, or neither when the part
// was not read this time.
type Reading[T any] struct {
	Value T
	Err   error
	Done  bool
}

// Read makes a Reading of what a reading function returned.
func Read[T any](value T, err error) Reading[T] {
	return Reading[T]{Value: value, Err: err, Done: true}
}

// ok reports whether there is a value.
func (r Reading[T]) ok() bool { return r.Done && r.Err == nil }

// Stamp changes with most of what happens to a file, though not with what matters
// most: block movers leave it alone. It is compared with the last one only.
type Stamp struct {
	Changed, Modified int64 // nanoseconds since 1970
	Blocks            uint64
	Attributes        uint64 // STATX_ATTR_*
	Tries             uint32 // Pins.Tries
}

// Observed is the same state, read again.
type Observed struct {
	Stamp    Stamp
	Stuck    error // the reading as a whole did not come back
	Identity Reading[Identity]
	Pins     Reading[Pins]
	Openers  Reading[Openers]
	Claim    Reading[Claim] // of an image that the kernel holds
	Base     Reading[Base]
	Below    Reading[map[dmtable.Device]Below]
	Own      Reading[OwnState]
	OwnTable Reading[dmtable.Table]
	Layout   Reading[extents.Layout]
	Unfit    Reading[[]extents.Problem] // attributes that make the image unmappable

	// Growing is the size in bytes that a command gives the image now, and 0 without one.
	// Meanwhile the image may be longer, the immutable flag is off, and the table may go on
	// behind its end.
	Growing extents.Bytes
}

// Part names a part of the state, in messages about failed readings.
type Part string

// The parts of Observed.
const (
	PartIdentity Part = "identity"
	PartPins     Part = "pins"
	PartOpeners  Part = "openers"
	PartClaim    Part = "swap area"
	PartBase     Part = "host device"
	PartBelow    Part = "devices below"
	PartOwn      Part = "own device"
	PartOwnTable Part = "own table"
	PartLayout   Part = "layout"
	PartUnfit    Part = "attributes"
)

// outcome is what became of reading one part.
type outcome struct {
	part Part
	err  error
}

// outcomes lists the parts that were read, in the order of Observed.
func (o Observed) outcomes() []outcome {
	var list []outcome
	add := func(part Part, done bool, err error) {
		if done {
			list = append(list, outcome{part, err})
		}
	}
	add(PartIdentity, o.Identity.Done, o.Identity.Err)
	add(PartPins, o.Pins.Done, o.Pins.Err)
	add(PartOpeners, o.Openers.Done, o.Openers.Err)
	add(PartClaim, o.Claim.Done, o.Claim.Err)
	add(PartBase, o.Base.Done, o.Base.Err)
	add(PartBelow, o.Below.Done, o.Below.Err)
	add(PartOwn, o.Own.Done, o.Own.Err)
	add(PartOwnTable, o.OwnTable.Done, o.OwnTable.Err)
	add(PartLayout, o.Layout.Done, o.Layout.Err)
	add(PartUnfit, o.Unfit.Done, o.Unfit.Err)
	return list
}
