package extents

import (
	"encoding/binary"
	"fmt"
	"math"
)

// The wire format of FS_IOC_FIEMAP (linux/fiemap.h), all fields in the
// machine's byte order:
//
//	struct fiemap {                         offset
//		__u64 fm_start;           /* in */       0
//		__u64 fm_length;          /* in */       8
//		__u32 fm_flags;           /* in/out */  16
//		__u32 fm_mapped_extents;  /* out */     20
//		__u32 fm_extent_count;    /* in */      24
//		__u32 fm_reserved;                      28
//		struct fiemap_extent fm_extents[];      32
//	};
//	struct fiemap_extent {
//		__u64 fe_logical;                        0
//		__u64 fe_physical;                       8
//		__u64 fe_length;                        16
//		__u64 fe_reserved64[2];
//		__u32 fe_flags;                         40
//		__u32 fe_reserved[3];
//	};                                        /* 56 */
const (
	headerSize = 32
	rowSize    = 56

	flagSync = 0x1 // FIEMAP_FLAG_SYNC: write the file's dirty pages back first
)

// encodeRequest makes buf a request for as many rows as fit into it, from start
// to the end of the file.
func encodeRequest(buf []byte, start Bytes) {
	clear(buf[:headerSize])
	ne := binary.NativeEndian
	ne.PutUint64(buf[0:], uint64(start))
	ne.PutUint64(buf[8:], math.MaxUint64-uint64(start))
	ne.PutUint32(buf[16:], flagSync)
	ne.PutUint32(buf[24:], uint32((len(buf)-headerSize)/rowSize))
}

// decodeReply appends the rows of a reply to rows, in the kernel's order. It fails
// when the reply claims more rows than buf holds, and when an address or its end is
// no non-negative int64: no Linux file or device is that large.
func decodeReply(rows []Extent, buf []byte) ([]Extent, error) {
	if len(buf) < headerSize {
		return nil, fmt.Errorf("FIEMAP reply of %d bytes is shorter than its header", len(buf))
	}
	ne := binary.NativeEndian
	count := uint64(ne.Uint32(buf[20:]))
	if count > uint64((len(buf)-headerSize)/rowSize) {
		return nil, fmt.Errorf("FIEMAP reply of %d bytes claims %d rows", len(buf), count)
	}
	for i := range int(count) {
		row := buf[headerSize+i*rowSize:][:rowSize]
		logical, physical, length := ne.Uint64(row[0:]), ne.Uint64(row[8:]), ne.Uint64(row[16:])
		if tooFar(logical, length) || tooFar(physical, length) {
			return nil, fmt.Errorf("FIEMAP row %d is out of range: logical %d, physical %d, length %d", i, logical, physical, length)
		}
		rows = append(rows, Extent{
			Logical:  Bytes(logical),
			Physical: Bytes(physical),
			Length:   Bytes(length),
			Flags:    Flags(ne.Uint32(row[40:])),
		})
	}
	return rows, nil
}

func tooFar(start, length uint64) bool {
	return start > math.MaxInt64 || length > math.MaxInt64-start
}
