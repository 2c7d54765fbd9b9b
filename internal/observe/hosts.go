package observe

import (
	"sync"
	"time"

	"dmloop/dmtable"
	"dmloop/guard"
)

// hostAge is how long a reading of a host device serves the checks of all mappings on
// it, which come in bursts.
const hostAge = 50 * time.Millisecond

// Hosts keeps what was last read of each host device. The zero value is ready.
type Hosts struct {
	mu   sync.Mutex
	last map[dmtable.Device]*host
}

// host is one device's last reading. Its lock is held while it is read, so that one
// that never returns holds up nobody but its own mappings.
type host struct {
	mu    sync.Mutex
	base  guard.Base
	until time.Time
}

// read returns a reading that is young enough, or a new one. Failures are not kept.
func (h *Hosts) read(dev dmtable.Device, again func() (guard.Base, error)) (guard.Base, error) {
	h.mu.Lock()
	if h.last == nil {
		h.last = map[dmtable.Device]*host{}
	}
	one := h.last[dev]
	if one == nil {
		one = &host{}
		h.last[dev] = one
	}
	h.mu.Unlock()
	one.mu.Lock()
	defer one.mu.Unlock()
	if time.Now().Before(one.until) {
		return one.base, nil
	}
	begun := time.Now()
	base, err := again()
	if err != nil {
		return guard.Base{}, err
	}
	one.base, one.until = base, begun.Add(hostAge)
	return base, nil
}
