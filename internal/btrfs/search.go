package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"dmloop/internal/ioctl"
)

// treeSearch takes struct btrfs_ioctl_search_args_v2 of linux/btrfs.h and needs
// CAP_SYS_ADMIN.
var treeSearch = ioctl.IOWR(0x94, 17, requestHead, "BTRFS_IOC_TREE_SEARCH_V2")

// The request, struct btrfs_ioctl_search_args_v2:
//
//	__u64 tree_id, min_objectid, max_objectid, min_offset, max_offset,
//	      min_transid, max_transid;              offsets 0 to 48
//	__u32 min_type, max_type, nr_items, unused;  offsets 56 to 68
//	__u64 unused1..4;                            offset 72
//	__u64 buf_size;                              offset 104
//	__u64 buf[];                                 offset 112
//
// and each item of the answer, struct btrfs_ioctl_search_header before its data:
//
//	__u64 transid, objectid, offset;             offsets 0, 8, 16
//	__u32 type, len;                             offsets 24, 28
const (
	requestHead = 112
	itemHead    = 32
	replySize   = 64 << 10

	chunkTree         = 3   // BTRFS_CHUNK_TREE_OBJECTID
	firstChunk        = 256 // BTRFS_FIRST_CHUNK_TREE_OBJECTID
	chunkItem         = 228 // BTRFS_CHUNK_ITEM_KEY
	offNrItems        = 64
	offBufSize        = 104
	mostItems         = 1<<32 - 1
	allOffsets        = 1<<64 - 1
	newestTransaction = 1<<64 - 1
)

// ReadChunks returns all chunks of the file system on which f is, in order of
// their addresses. f may be any file or directory there.
func ReadChunks(f *os.File) ([]Chunk, error) {
	chunks, err := readChunks(func(buf []byte) error { return ioctl.Buffer(int(f.Fd()), treeSearch, buf) })
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("reading the chunk tree needs CAP_SYS_ADMIN: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return chunks, nil
}

// readChunks calls until an answer has no items, each call from after the last
// item of the one before.
func readChunks(call func(buf []byte) error) ([]Chunk, error) {
	buf := make([]byte, requestHead+replySize)
	var all []Chunk
	for from := uint64(0); ; {
		encodeSearch(buf, from)
		if err := call(buf); err != nil {
			return nil, err
		}
		chunks, err := parseReply(buf)
		if err != nil {
			return nil, err
		}
		if len(chunks) == 0 {
			return all, nil
		}
		for _, c := range chunks {
			if uint64(c.Logical) < from {
				return nil, fmt.Errorf("chunk at %d is out of order", c.Logical)
			}
			from = uint64(c.end())
		}
		all = append(all, chunks...)
	}
}

// encodeSearch asks for the chunks at an address and above.
func encodeSearch(buf []byte, from uint64) {
	clear(buf)
	ne := binary.NativeEndian
	for i, v := range []uint64{chunkTree, firstChunk, firstChunk, from, allOffsets, 0, newestTransaction} {
		ne.PutUint64(buf[8*i:], v)
	}
	ne.PutUint32(buf[56:], chunkItem)
	ne.PutUint32(buf[60:], chunkItem)
	ne.PutUint32(buf[offNrItems:], mostItems)
	ne.PutUint64(buf[offBufSize:], uint64(len(buf)-requestHead))
}

// parseReply reads the chunks in the answer to encodeSearch.
func parseReply(buf []byte) ([]Chunk, error) {
	if len(buf) < requestHead {
		return nil, fmt.Errorf("answer of %d bytes", len(buf))
	}
	ne := binary.NativeEndian
	n, rest := ne.Uint32(buf[offNrItems:]), buf[requestHead:]
	var out []Chunk
	for i := range n {
		if len(rest) < itemHead {
			return nil, fmt.Errorf("answer ends in item %d of %d", i, n)
		}
		objectID, offset := ne.Uint64(rest[8:]), ne.Uint64(rest[16:])
		kind, size := ne.Uint32(rest[24:]), ne.Uint32(rest[28:])
		if uint64(size) > uint64(len(rest)-itemHead) {
			return nil, fmt.Errorf("answer ends in item %d of %d", i, n)
		}
		data := rest[itemHead : itemHead+size]
		rest = rest[itemHead+size:]
		// The kernel compares whole keys, but be sure.
		if objectID != firstChunk || kind != chunkItem {
			return nil, fmt.Errorf("item %d of %d is (%d %d %d), not a chunk", i, n, objectID, kind, offset)
		}
		c, err := parseChunk(offset, data)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}
