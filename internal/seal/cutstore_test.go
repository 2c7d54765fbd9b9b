package seal

import (
	"bytes"
	"errors"
	"math/rand/v2"

	"golang.org/x/sys/unix"

	"dmloop/extents"
)

// errCut ends a run of a change at the moment the power goes.
var errCut = errors.New("power cut")

// cutStore is a store in memory that keeps apart what is durable and what was
// written since the last sync, and stops with errCut before operation cutAt.
//
// It is harder than any disk and file system: of what was not synced each
// sector may arrive or not, by itself and in any order; of the changes of size a
// first part arrives, and of those of the attribute, in order but each whatever
// becomes of the other and of the data; and a part of the file that has grown
// and was not written holds rubbish.
type cutStore struct {
	disk  []byte // durable content; its length is the durable size
	attr  []byte // durable attribute, nil when there is none
	data  []sectorWrite
	sizes []int    // changes of the size
	attrs [][]byte // changes of the attribute
	now   []byte   // what a reader sees
	nowAt []byte   // the attribute that a reader sees
	base  extents.Bytes
	runs  []extents.Bytes // lengths of the physical runs; the last goes on for ever
	ops   int
	cutAt int // -1: never
	block extents.Bytes
	flags extents.Flags         // of the last extent
	bare  bool                  // the attribute stands for a file beside the image: it holds intents only
	fixed bool                  // nothing is written beyond the end, as in a pinned f2fs file
	fail  func(op string) error // an error that an operation returns instead
}

type sectorWrite struct {
	sector int
	data   [sectorSize]byte
}

func newCutStore(content []byte) *cutStore {
	return &cutStore{disk: bytes.Clone(content), now: bytes.Clone(content), cutAt: -1, block: 1024}
}

// step counts an operation that changes something.
func (s *cutStore) step(op string) error {
	if s.fail != nil {
		if err := s.fail(op); err != nil {
			return err
		}
	}
	if s.ops == s.cutAt {
		return errCut
	}
	s.ops++
	return nil
}

func (s *cutStore) size() (extents.Bytes, error)      { return extents.Bytes(len(s.now)), nil }
func (s *cutStore) blockSize() (extents.Bytes, error) { return s.block, nil }
func (s *cutStore) attribute() ([]byte, error)        { return bytes.Clone(s.nowAt), nil }

func (s *cutStore) read(off, n extents.Bytes) ([]byte, error) {
	from := min(int(off), len(s.now))
	return bytes.Clone(s.now[from:min(int(off+n), len(s.now))]), nil
}

func (s *cutStore) write(off extents.Bytes, p []byte) error {
	if err := s.step("write"); err != nil {
		return err
	}
	if end := int(off) + len(p); end > len(s.now) {
		if s.fixed {
			return unix.EIO
		}
		s.now = append(s.now, make([]byte, end-len(s.now))...)
		s.sizes = append(s.sizes, end)
	}
	copy(s.now[off:], p)
	for at := int(off) / sectorSize; at*sectorSize < int(off)+len(p); at++ {
		w := sectorWrite{sector: at}
		copy(w.data[:], s.now[at*sectorSize:])
		s.data = append(s.data, w)
	}
	return nil
}

func (s *cutStore) sync() error {
	if err := s.step("sync"); err != nil {
		return err
	}
	s.disk, s.attr = bytes.Clone(s.now), s.nowAt
	s.data, s.sizes, s.attrs = nil, nil, nil
	return nil
}

func (s *cutStore) reserve(_, _ extents.Bytes) error { return s.step("reserve") }

func (s *cutStore) grow(off, n extents.Bytes) error {
	if err := s.step("grow"); err != nil {
		return err
	}
	if end := int(off + n); end > len(s.now) {
		s.now = append(s.now, make([]byte, end-len(s.now))...)
		s.sizes = append(s.sizes, end)
	}
	return nil
}

func (s *cutStore) truncate(size extents.Bytes) error {
	if err := s.step("truncate"); err != nil {
		return err
	}
	s.now = s.now[:min(int(size), len(s.now))]
	s.sizes = append(s.sizes, len(s.now))
	return nil
}

func (s *cutStore) setAttribute(p []byte) error {
	if err := s.step("setAttribute"); err != nil {
		return err
	}
	s.nowAt = bytes.Clone(p)
	if r, err := Decode(p); s.bare && err == nil && r.Phase == PhaseSealed {
		s.nowAt = nil
	}
	s.attrs = append(s.attrs, s.nowAt)
	return nil
}

func (s *cutStore) dropAttribute() error {
	if err := s.step("dropAttribute"); err != nil {
		return err
	}
	s.nowAt = nil
	s.attrs = append(s.attrs, nil)
	return nil
}

// layout says that the file lies in the runs, each 64 KiB after the last.
func (s *cutStore) layout() (extents.Layout, error) {
	l := extents.Layout{Size: extents.Bytes(len(s.now))}
	at, phys := extents.Bytes(0), s.base
	for _, n := range append(s.runs, l.Size) {
		n = min(n, l.Size-at)
		if n <= 0 {
			break
		}
		l.Extents = append(l.Extents, extents.Extent{Logical: at, Physical: phys, Length: n})
		at += n
		phys += n + 64<<10
	}
	if n := len(l.Extents); n > 0 {
		l.Extents[n-1].Flags = extents.FlagLast | s.flags
	}
	return l, nil
}

// part says how much of what was not synced a power cut lets through.
type part struct {
	sector func(i int) bool // whether sector write i arrives
	sizes  int              // how many changes of the size do
	attrs  int              // and of the attribute
}

func none(int) bool { return false }
func all(int) bool  { return true }

// clone returns the store as it is, with everything durable.
func (s *cutStore) clone() *cutStore {
	out := s.after(part{none, 0, 0}, nil)
	out.now, out.nowAt = bytes.Clone(s.now), s.nowAt
	out.disk, out.attr = bytes.Clone(s.now), s.nowAt
	return out
}

// after returns the store as a power cut leaves it.
func (s *cutStore) after(p part, r *rand.Rand) *cutStore {
	out := &cutStore{disk: bytes.Clone(s.disk), attr: s.attr, base: s.base, runs: s.runs, cutAt: -1, block: s.block, fixed: s.fixed, bare: s.bare}
	if p.attrs > 0 {
		out.attr = s.attrs[p.attrs-1]
	}
	for _, size := range s.sizes[:p.sizes] {
		out.disk = out.disk[:min(size, len(out.disk))]
		for len(out.disk) < size {
			out.disk = append(out.disk, byte(r.Uint32()))
		}
	}
	for i, w := range s.data {
		if at := w.sector * sectorSize; at+sectorSize <= len(out.disk) && p.sector(i) {
			copy(out.disk[at:], w.data[:])
		}
	}
	out.now, out.nowAt = bytes.Clone(out.disk), out.attr
	return out
}
