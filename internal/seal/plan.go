package seal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"dmloop/extents"
	"dmloop/internal/advice"
)

// plan chooses what to move in a plain image of size bytes. It changes nothing.
func (c change) plan(size extents.Bytes) (Record, error) {
	block, err := c.blockSize()
	if err != nil {
		return Record{}, err
	}
	switch {
	case size == 0:
		return Record{}, extents.Refuse("", extents.Problem{Rule: extents.Empty, Message: "the image is empty", Remedy: advice.MakeImage})
	case block > c.page:
		return Record{}, extents.Refuse("", largeBlocks(block, c.page))
	case size%max(block, sectorSize) != 0:
		block, rest := max(block, sectorSize), size%max(block, sectorSize)
		return Record{}, extents.Refuse("", extents.Problem{
			Rule: extents.SizeUnaligned, Offset: size - rest, Length: rest,
			Message: fmt.Sprintf("the size %d is not a multiple of the file system's block of %d bytes", size, block),
			Remedy:  advice.SizeTo.At(block, 0),
		})
	}
	l, err := c.layout()
	if err != nil {
		return Record{}, err
	}
	if p := l.Problems(max(block, sectorSize), 0); len(p) > 0 {
		return Record{}, extents.Refuse("", p[0])
	}
	need, err := prologueFor(l, c.page)
	var few *NoSlotError
	if errors.As(err, &few) {
		// A short image: move looks again when it has grown.
		need, err = max(2*c.page, alignUp(size, c.page)), nil
	}
	if err == nil {
		err = tooLong(need)
	}
	if err != nil {
		return Record{}, err
	}
	var uuid [16]byte
	_, _ = rand.Read(uuid[:])     // never fails
	uuid[6] = uuid[6]&0x0f | 0x40 // version 4: random
	uuid[8] = uuid[8]&0x3f | 0x80 // RFC 9562
	r := newRecord(size, need, c.page, uuid)
	r.Written = c.written
	return r, c.fits(r)
}

// fits refuses a file that would be longer than the file system lets a file be.
func (c change) fits(r Record) error {
	if c.most == 0 || r.Size() <= c.most {
		return nil
	}
	return extents.Refuse("", extents.Problem{
		Rule: extents.Unpinnable, Offset: r.Payload, Length: r.Size() - r.Payload,
		Message: fmt.Sprintf("sealed, the file would have %d bytes, and a file on this file system has at most %d", r.Size(), c.most),
		Remedy:  advice.LongerFiles.At(c.most/r.PageSize*r.PageSize-(r.Size()-r.Payload)-r.PageSize, 0),
	})
}

// LargeBlocks returns why no image is sealed on a file system with blocks of this size, in
// bytes, on the running kernel, or nil.
func LargeBlocks(block extents.Bytes) *extents.Problem {
	page := extents.Bytes(os.Getpagesize())
	if block <= page {
		return nil
	}
	p := largeBlocks(block, page)
	return &p
}

func largeBlocks(block, page extents.Bytes) extents.Problem {
	return extents.Problem{
		Rule: extents.Unpinnable, Remedy: advice.SmallerBlocks,
		Message: fmt.Sprintf("the file system's blocks of %d bytes are larger than the kernel's pages of %d: newer kernels take no swap file there", block, page),
	}
}

func tooLong(need extents.Bytes) error {
	if need <= MaxPrologue {
		return nil
	}
	return extents.Refuse("", extents.Problem{
		Rule: extents.Unpinnable, Length: need,
		Message: fmt.Sprintf("the first %d bytes would have to be moved to give the kernel a whole page, %d is the most", need, MaxPrologue),
		Remedy:  advice.CopyToNew,
	})
}
