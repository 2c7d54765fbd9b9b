package backing

import "dmloop/extents"

// meter adds up progress. It is used by one goroutine at a time.
type meter struct {
	show        func(done, total extents.Bytes) // nil: nobody looks
	done, total extents.Bytes
}

// grow adds work.
func (m *meter) grow(n extents.Bytes) {
	m.total += n
	m.tick(0)
}

// tick records that n bytes of the work are done.
func (m *meter) tick(n extents.Bytes) {
	m.done += n
	if m.show != nil {
		m.show(m.done, m.total)
	}
}
