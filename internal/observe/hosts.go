package observe

import (
	"sync"
	"time"

	"dmloop/dmtable"
	"dmloop/guard"
)

// hostAge is how long a reading of a device serves the checks of all mappings on it,
// which come in bursts.
const hostAge = 50 * time.Millisecond

// Hosts keeps what was last read of each host device, and of each device below one.
// The zero value is ready; nil keeps nothing.
type Hosts struct {
	hosts shared[guard.Base]
	lower shared[guard.Below]
}

// read returns a reading of a host device that is young enough, or a new one.
// Failures are not kept.
func (h *Hosts) read(dev dmtable.Device, again func() (guard.Base, error)) (guard.Base, error) {
	return h.hosts.read(dev, again)
}

// below does the same for a device below a host device.
func (h *Hosts) below(dev dmtable.Device, fresh bool, again func() (guard.Below, error)) (guard.Below, error) {
	if h == nil || fresh {
		return again()
	}
	return h.lower.read(dev, again)
}

// shared keeps the last reading of each device.
type shared[T any] struct {
	mu   sync.Mutex
	last map[dmtable.Device]*reading[T]
}

// reading is one device's last one. Its lock is held while it is read, so that one
// that never returns holds up only its own mappings.
type reading[T any] struct {
	mu    sync.Mutex
	value T
	until time.Time
}

func (s *shared[T]) read(dev dmtable.Device, again func() (T, error)) (T, error) {
	s.mu.Lock()
	if s.last == nil {
		s.last = map[dmtable.Device]*reading[T]{}
	}
	one := s.last[dev]
	if one == nil {
		one = &reading[T]{}
		s.last[dev] = one
	}
	s.mu.Unlock()
	one.mu.Lock()
	defer one.mu.Unlock()
	if time.Now().Before(one.until) {
		return one.value, nil
	}
	begun := time.Now()
	value, err := again()
	if err != nil {
		var none T
		return none, err
	}
	one.value, one.until = value, begun.Add(hostAge)
	return value, nil
}
