package ioctl

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Total is what the calls of one request have cost.
type Total struct {
	Request string
	Calls   int
	Took    time.Duration // in the kernel
}

var (
	counting atomic.Bool
	mutex    sync.Mutex
	totals   = map[string]Total{}
)

// Count starts counting calls and the time that the kernel takes for them.
func Count() { counting.Store(true) }

// Totals returns what was counted, sorted by the request's name.
func Totals() []Total {
	mutex.Lock()
	defer mutex.Unlock()
	all := make([]Total, 0, len(totals))
	for _, t := range totals {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b Total) int { return strings.Compare(a.Request, b.Request) })
	return all
}

func count(name string, took time.Duration) {
	mutex.Lock()
	defer mutex.Unlock()
	t := totals[name]
	totals[name] = Total{name, t.Calls + 1, t.Took + took}
}
