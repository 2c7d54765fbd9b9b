package seal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"dmloop/extents"
)

// The swap header, union swap_header in the kernel's include/linux/swap.h:
//
//	char  bootbits[1024];         offset 0, left to others; our record is here
//	__u32 version;                offset 1024, must be 1
//	__u32 last_page;              offset 1028, the number of the last page
//	__u32 nr_badpages;            offset 1032
//	unsigned char sws_uuid[16];   offset 1036
//	unsigned char sws_volume[16]; offset 1052, the label
//	__u32 padding[117];           offset 1068
//	__u32 badpages[1];            offset 1536
//
// with the signature in the last 10 bytes of the kernel's page.
const (
	offVersion   = 1024
	offLastPage  = 1028
	offBadPages  = 1032
	offUUID      = 1036
	offLabel     = 1052
	signature    = "SWAPSPACE2"
	label        = "dmloop"
	swapVersion  = 1
	swapLastPage = 1 // the least that swapon(2) accepts: the header and one page
)

// HeaderPage returns page 0 of an image sealed as r says, r.PageSize bytes.
func HeaderPage(r Record) []byte {
	r.Phase, r.Sum = PhaseSealed, 0
	p := make([]byte, r.PageSize)
	copy(p, r.Encode())
	le := binary.LittleEndian
	le.PutUint32(p[offVersion:], swapVersion)
	le.PutUint32(p[offLastPage:], swapLastPage)
	copy(p[offUUID:], r.UUID[:])
	copy(p[offLabel:], label)
	copy(p[len(p)-len(signature):], signature)
	return p
}

// DecodePage reads page 0 of a sealed image; p holds that page at least, which
// may be of any page size. It returns ErrNoRecord when p does not begin with
// dmloop's magic, and an error that says what does not hold when the record, or
// the swap header around it, is not what HeaderPage writes. The header's uuid
// and label are not looked at: the kernel ignores them, and swaplabel(8) may
// have set others.
func DecodePage(p []byte) (Record, error) {
	r, err := Decode(p)
	if err != nil {
		return Record{}, err
	}
	if extents.Bytes(len(p)) < r.PageSize {
		return Record{}, fmt.Errorf("page 0 has %d bytes, the record says %d", len(p), r.PageSize)
	}
	p = p[:r.PageSize]
	le := binary.LittleEndian
	switch {
	case r.Phase != PhaseSealed:
		return Record{}, fmt.Errorf("record in page 0 says %v", r.Phase)
	case !allZero(p[RecordSize:offVersion]):
		return Record{}, errors.New("bytes between the record and the swap header are not zero")
	case string(p[len(p)-len(signature):]) != signature:
		return Record{}, errors.New("no swap signature at the end of page 0")
	case le.Uint32(p[offVersion:]) != swapVersion, le.Uint32(p[offLastPage:]) != swapLastPage, le.Uint32(p[offBadPages:]) != 0:
		return Record{}, fmt.Errorf("swap header has version %d, last page %d, %d bad pages, want %d, %d, 0",
			le.Uint32(p[offVersion:]), le.Uint32(p[offLastPage:]), le.Uint32(p[offBadPages:]), swapVersion, swapLastPage)
	}
	return r, nil
}

// ReadHeader reads page 0 of a sealed image from the disk, and the record in it. It
// fails when the page is not exactly what sealing wrote, for the page size of this
// kernel and this size of the file: then swapon(2) would take something other than the
// one page that is meant. f is used as by Inspect.
func ReadHeader(f *os.File) ([]byte, Record, error) {
	s := newFileStore(f)
	page := extents.Bytes(os.Getpagesize())
	p, err := s.read(0, page)
	if err != nil {
		return nil, Record{}, err
	}
	size, err := s.size()
	if err != nil {
		return nil, Record{}, err
	}
	r, err := DecodePage(p)
	switch {
	case err != nil:
		return nil, Record{}, fmt.Errorf("%s: page 0: %w", f.Name(), err)
	case r.PageSize != page || r.Size() != size:
		return nil, Record{}, fmt.Errorf("%s: page 0 is that of a file of %d bytes for pages of %d", f.Name(), r.Size(), r.PageSize)
	}
	return p, r, nil
}
