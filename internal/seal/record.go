// Package seal turns a plain image into a sealed one and back. A sealed image
// begins with a swap header, so that the kernel can hold the file as a swap
// file and nobody can move its blocks; the pages that stood there wait, whole,
// beyond the payload. docs/sealed-format.md describes the format byte by byte.
//
// Every change is made so that a cut between any two writes, or in the middle
// of one, leaves an image whose content is still there once and whole: Inspect
// says what state an image is in, Seal and Unseal both finish a half-way one.
package seal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"

	"dmloop/extents"
)

// RecordSize is the length in bytes of an encoded Record.
const RecordSize = 128

// Version is the format version that this package writes and reads.
const Version = 1

// MaxPrologue is the most bytes that sealing moves aside. An image that needs
// more, because its blocks lie in pieces smaller than a page, is not sealed.
const MaxPrologue extents.Bytes = 1 << 20

// The page sizes that kernels have: 4 KiB (x86, arm64) to 64 KiB (arm64, ppc64).
const (
	minPageSize = 4 << 10
	maxPageSize = 64 << 10
)

// Phase says what a record is: the mark of a sealed image, or the intent of a
// change that has been started.
type Phase uint32

// The phases. In page 0 there is only PhaseSealed, in the extended attribute
// only the other two; the trailer has any of them.
const (
	PhaseSealed    Phase = 1 // the image is sealed
	PhaseSealing   Phase = 2 // a plain image is being sealed
	PhaseUnsealing Phase = 3 // a sealed image is being made plain again
)

// String returns the phase as messages show it.
func (p Phase) String() string {
	switch p {
	case PhaseSealed:
		return "sealed"
	case PhaseSealing:
		return "sealing"
	case PhaseUnsealing:
		return "unsealing"
	}
	return fmt.Sprintf("phase %d", uint32(p))
}

// Record says where the pieces of a sealed image are. All lengths and offsets
// are bytes of the file.
type Record struct {
	Phase    Phase
	PageSize extents.Bytes // page size of the kernel that sealed it
	Prologue extents.Bytes // bytes [0,Prologue) belong to the kernel while the image is sealed; whole pages, 2 at least
	Payload  extents.Bytes // size of the plain image
	Moved    extents.Bytes // where the content of [0,Prologue) stands: the first page after Payload, Prologue and leastMoved
	UUID     [16]byte      // made anew at each sealing
	Sum      uint32        // CRC-32C of the content of [0,Kept()); 0 in PhaseSealed, where the content changes without us
	Written  bool          // dmloop wrote every byte of the file once, where the layout alone does not show that they were written
}

// flagWritten is Written in the record's flags. Other bits are refused: they are of a later
// version and may mean anything.
const flagWritten = 1

// Size returns the size of the sealed file: payload, moved pages and one page
// for the trailer.
func (r Record) Size() extents.Bytes { return r.Moved + r.Prologue + r.PageSize }

// Kept returns how many bytes of the plain image lie in the prologue: all of
// it, or less when the image is shorter than its prologue.
func (r Record) Kept() extents.Bytes { return min(r.Prologue, r.Payload) }

// place reports whether r and o put the same pieces at the same offsets.
func (r Record) place(o Record) bool {
	return r.UUID == o.UUID && r.PageSize == o.PageSize && r.Prologue == o.Prologue && r.Payload == o.Payload && r.Moved == o.Moved
}

// newRecord returns the record for an image of payload bytes whose first
// prologue bytes are moved, on a kernel with pages of page bytes.
func newRecord(payload, prologue, page extents.Bytes, uuid [16]byte) Record {
	return Record{
		Phase: PhaseSealing, PageSize: page, Prologue: prologue, Payload: payload,
		Moved: movedAt(payload, prologue, page), UUID: uuid,
	}
}

// leastMoved keeps the file of a tiny image at 40 KiB or more: blkid(8) takes
// nothing smaller for a swap area.
const leastMoved = 28 << 10

func movedAt(payload, prologue, page extents.Bytes) extents.Bytes {
	return alignUp(max(payload, prologue, leastMoved), page)
}

var (
	magic = [8]byte{'D', 'M', 'L', 'P', 'S', 'E', 'A', 'L'}
	// castagnoli makes its tables when they are first needed.
	castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })
)

// ErrNoRecord says that the bytes do not begin with dmloop's magic.
var ErrNoRecord = errors.New("no dmloop record")

// Encode returns the record's RecordSize bytes.
func (r Record) Encode() []byte {
	b := make([]byte, RecordSize)
	le := binary.LittleEndian
	copy(b, magic[:])
	le.PutUint32(b[8:], Version)
	le.PutUint32(b[12:], uint32(r.Phase))
	le.PutUint32(b[16:], uint32(r.PageSize))
	le.PutUint32(b[20:], uint32(r.Prologue/r.PageSize))
	le.PutUint64(b[24:], uint64(r.Payload))
	le.PutUint64(b[32:], uint64(r.Moved))
	le.PutUint64(b[40:], uint64(r.Size()))
	copy(b[48:64], r.UUID[:])
	le.PutUint32(b[64:], r.Sum)
	if r.Written {
		le.PutUint32(b[68:], flagWritten)
	}
	le.PutUint32(b[RecordSize-4:], crc32.Checksum(b[:RecordSize-4], castagnoli()))
	return b
}

// Decode reads a record from the first RecordSize bytes of b. It returns
// ErrNoRecord when the magic is not there, and another error that says what
// does not hold when it is.
func Decode(b []byte) (Record, error) {
	if len(b) < len(magic) || !bytes.Equal(b[:len(magic)], magic[:]) {
		return Record{}, ErrNoRecord
	}
	if len(b) < RecordSize {
		return Record{}, fmt.Errorf("record of %d bytes, want %d", len(b), RecordSize)
	}
	b = b[:RecordSize]
	le := binary.LittleEndian
	if sum, want := crc32.Checksum(b[:RecordSize-4], castagnoli()), le.Uint32(b[RecordSize-4:]); sum != want {
		return Record{}, fmt.Errorf("record checksum is %08x, want %08x", sum, want)
	}
	if v := le.Uint32(b[8:]); v != Version {
		return Record{}, fmt.Errorf("format version %d, this dmloop knows %d", v, Version)
	}
	if !allZero(b[72 : RecordSize-4]) {
		return Record{}, errors.New("reserved bytes of the record are not zero")
	}
	flags := le.Uint32(b[68:])
	if flags&^flagWritten != 0 {
		return Record{}, fmt.Errorf("flags 0x%x in the record, which this dmloop does not know", flags&^flagWritten)
	}
	payload, moved, size := le.Uint64(b[24:]), le.Uint64(b[32:]), le.Uint64(b[40:])
	if payload > maxOffset || moved > maxOffset || size > maxOffset {
		return Record{}, fmt.Errorf("offset beyond %d in the record", uint64(maxOffset))
	}
	page := extents.Bytes(le.Uint32(b[16:]))
	r := Record{
		Phase: Phase(le.Uint32(b[12:])), PageSize: page, Prologue: extents.Bytes(le.Uint32(b[20:])) * page,
		Payload: extents.Bytes(payload), Moved: extents.Bytes(moved),
		UUID: [16]byte(b[48:64]), Sum: le.Uint32(b[64:]), Written: flags&flagWritten != 0,
	}
	if err := r.validate(); err != nil {
		return Record{}, err
	}
	if extents.Bytes(size) != r.Size() {
		return Record{}, fmt.Errorf("record names a sealed size of %d bytes, its parts end at %d", size, r.Size())
	}
	return r, nil
}

// maxOffset is the largest offset that a record may name: 2^62 bytes, so that
// sums of offsets do not overflow.
const maxOffset = 1 << 62

func (r Record) validate() error {
	switch {
	case r.Phase != PhaseSealed && r.Phase != PhaseSealing && r.Phase != PhaseUnsealing:
		return fmt.Errorf("unknown %v in the record", r.Phase)
	case r.PageSize < minPageSize || r.PageSize > maxPageSize || r.PageSize&(r.PageSize-1) != 0:
		return fmt.Errorf("page size of %d bytes in the record", r.PageSize)
	case r.Prologue < 2*r.PageSize || r.Prologue > MaxPrologue:
		return fmt.Errorf("prologue of %d bytes in the record, want %d to %d", r.Prologue, 2*r.PageSize, MaxPrologue)
	case r.Payload < sectorSize || r.Payload%sectorSize != 0:
		return fmt.Errorf("payload of %d bytes in the record", r.Payload)
	case r.Moved != movedAt(r.Payload, r.Prologue, r.PageSize):
		return fmt.Errorf("moved pages at byte %d in the record, want %d", r.Moved, movedAt(r.Payload, r.Prologue, r.PageSize))
	case r.Phase == PhaseSealed && r.Sum != 0:
		return errors.New("content checksum in the record of a sealed image")
	}
	return nil
}

func alignUp(n, to extents.Bytes) extents.Bytes { return (n + to - 1) / to * to }

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli()) }
