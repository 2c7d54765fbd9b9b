package extents

import (
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"dmloop/internal/ioctl"
)

// FIBMAP and FIGETBSZ of linux/fs.h; both take an int.
var (
	fibmapRequest = ioctl.IO(0, 1, "FIBMAP")
	unitRequest   = ioctl.IO(0, 2, "FIGETBSZ")
)

// byBlock reports whether a file system, named by its f_type of statfs(2), tells the layout
// of a file block by block only: FAT and exFAT.
func byBlock(magic uint32) bool {
	return magic == unix.MSDOS_SUPER_MAGIC || magic == unix.EXFAT_SUPER_MAGIC
}

// BlockUnit returns the size of the blocks in which the kernel addresses a file of this file
// system (FIGETBSZ). On FAT and exFAT that is a sector of theirs, of which many make a
// cluster, the block that statfs(2) names.
func BlockUnit(f *os.File) (Bytes, error) {
	var unit int32
	if err := ioctl.Pointer(int(f.Fd()), unitRequest, &unit); err != nil {
		return 0, fmt.Errorf("%s: %w", f.Name(), err)
	}
	if unit <= 0 || unit&(unit-1) != 0 {
		return 0, fmt.Errorf("%s: FIGETBSZ says %d bytes", f.Name(), unit)
	}
	return Bytes(unit), nil
}

// fibmapWalk asks for blocks by FIBMAP. It needs CAP_SYS_RAWIO; the errno is EPERM without.
func fibmapWalk(f *os.File, cluster Bytes) (walk, error) {
	unit, err := BlockUnit(f)
	if err != nil {
		return nil, err
	}
	m := blockMap{unit: unit, cluster: max(cluster, unit), ask: func(block int32) (int32, error) {
		err := ioctl.Pointer(int(f.Fd()), fibmapRequest, &block)
		return block, err
	}}
	if m.cluster%unit != 0 {
		m.cluster = unit
	}
	return func(size Bytes, visit func(rows []Extent, done Bytes) error) error {
		const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		if err := unix.SyncFileRange(int(f.Fd()), 0, 0, all); err != nil { // as FIEMAP_FLAG_SYNC
			return os.NewSyscallError("sync_file_range", err)
		}
		return m.walk(size, visit)
	}, nil
}

// blockMap makes rows of single blocks.
type blockMap struct {
	unit    Bytes // of what ask counts
	cluster Bytes // what the file system gives a file at a time, a multiple of unit
	// ask returns the address of a block of the file, 0 where it has none. The errno is
	// ERANGE for an address that does not fit (ioctl_fibmap in fs/ioctl.c, Linux 5.8).
	ask func(block int32) (int32, error)
}

// mostBlocks is how many blocks FIBMAP can be asked for.
const mostBlocks = Bytes(math.MaxInt32) + 1

// walk asks for the first and the last block of each cluster, and for those between when
// these two do not fit together: a cluster is one piece by the design of the file system. Of
// a file of 4 GiB that is two million calls with the smallest usual clusters, instead of
// eight. What the kernel cannot tell is a row with FlagUnknown.
func (m blockMap) walk(size Bytes, visit func(rows []Extent, done Bytes) error) error {
	g := gathering{visit: visit}
	total := (size + m.unit - 1) / m.unit
	for first := Bytes(0); first < total; {
		if first >= mostBlocks {
			g.add(Extent{Logical: first * m.unit, Length: (total - first) * m.unit, Flags: FlagUnknown})
			break
		}
		count := min(m.cluster/m.unit, total-first, mostBlocks-first)
		if err := m.piece(&g, first, count); err != nil {
			return err
		}
		if g.err != nil {
			return g.err
		}
		first += count
	}
	return g.end()
}

// piece adds count blocks that lie in one cluster.
func (m blockMap) piece(g *gathering, first, count Bytes) error {
	begin, err := m.block(first)
	if err != nil {
		return err
	}
	end := begin
	if count > 1 {
		if end, err = m.block(first + count - 1); err != nil {
			return err
		}
	}
	if begin.Flags == 0 && end.Flags == 0 && begin.Length > 0 && end.Length > 0 && end.Physical-begin.Physical == (count-1)*m.unit {
		begin.Length = count * m.unit
		g.add(begin)
		return nil
	}
	if count > 1 {
		for i := range count {
			one, err := m.block(first + i)
			if err != nil {
				return err
			}
			g.add(one)
		}
		return nil
	}
	g.add(begin)
	return nil
}

// block returns the row of one block, of no length for a hole.
func (m blockMap) block(n Bytes) (Extent, error) {
	at, err := m.ask(int32(n))
	row := Extent{Logical: n * m.unit, Physical: Bytes(at) * m.unit, Length: m.unit}
	switch {
	case errors.Is(err, unix.ERANGE), err == nil && at < 0:
		row.Physical, row.Flags = 0, FlagUnknown
	case err != nil:
		return Extent{}, err
	case at == 0:
		row.Length = 0
	}
	return row, nil
}

// gathering merges rows as they come and hands them on in batches.
type gathering struct {
	visit func(rows []Extent, done Bytes) error
	rows  []Extent
	err   error // of visit
}

// add takes the next row. One of no length is a hole and nothing.
func (g *gathering) add(e Extent) {
	if e.Length == 0 || g.err != nil {
		return
	}
	if n := len(g.rows); n > 0 {
		last := &g.rows[n-1]
		unknown := e.Flags&last.Flags&FlagUnknown != 0
		if last.end() == e.Logical && (unknown || e.Flags == last.Flags && last.Physical+last.Length == e.Physical) {
			last.Length += e.Length
			return
		}
		if n == batchRows { // all but the last one, which may go on
			g.hand(g.rows[:n-1])
			g.rows = append(g.rows[:0], g.rows[n-1])
		}
	}
	g.rows = append(g.rows, e)
}

func (g *gathering) hand(rows []Extent) {
	if len(rows) > 0 && g.err == nil {
		g.err = g.visit(rows, rows[len(rows)-1].end())
	}
}

// end hands on what is left, and marks the last row: the list has an end.
func (g *gathering) end() error {
	if n := len(g.rows); n > 0 {
		g.rows[n-1].Flags |= FlagLast
	}
	g.hand(g.rows)
	return g.err
}
