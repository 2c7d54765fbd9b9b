package guardd

import "sync"

// nameLocks is one mutex per name, for as long as somebody wants it. The zero value
// is ready.
type nameLocks struct {
	mu   sync.Mutex
	held map[string]*nameLock
}

type nameLock struct {
	sync.Mutex
	wanted int
}

// with runs do while nobody else runs with the same name.
func (l *nameLocks) with(name string, do func()) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*nameLock{}
	}
	n := l.held[name]
	if n == nil {
		n = &nameLock{}
		l.held[name] = n
	}
	n.wanted++
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if n.wanted--; n.wanted == 0 {
			delete(l.held, name)
		}
	}()
	n.Lock()
	defer n.Unlock()
	do()
}
