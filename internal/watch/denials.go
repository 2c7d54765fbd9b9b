package watch

import (
	"bytes"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dmloop/guard"
	"dmloop/internal/ration"
)

// Nobody is the user of a process that was gone before it could be asked.
const Nobody = -1

// Denial is a refused open, or several by the same user of the same file.
type Denial struct {
	File    guard.FileID
	UID     int    // of the process, or Nobody
	PID     int    // of the last one
	Program string // the kernel's name of the process, 15 characters at most; "?" of one that was gone
	Times   uint64
}

// Of each user and file, tellBurst denials in a row are told one by one, and from then on
// one each tellPause: an opener in a loop must not fill a log.
const (
	tellBurst = 20
	tellPause = 10 * time.Second
)

// denials keeps count of what a gate refused. Its owner hears of some of them one by
// one, and of the others in sums.
type denials struct {
	told chan Denial

	mu     sync.Mutex
	total  uint64
	counts map[guard.FileID]uint64
	series map[seriesKey]*series
	users  map[int]int // of processes, so that each is asked once
}

type seriesKey struct {
	file guard.FileID
	uid  int
}

// series is what one user was refused of one file.
type series struct {
	ration ration.Ration
	untold uint64
	pid    int // of the last one untold
}

// The memory of whom processes belong to is bounded, and so is the number of series;
// further users of a file are then summed up as Nobody.
const (
	usersKept  = 1000
	seriesKept = 64
)

func newDenials() *denials {
	return &denials{told: make(chan Denial, 256), counts: map[guard.FileID]uint64{}, series: map[seriesKey]*series{}, users: map[int]int{}}
}

// Denials gives the denials that are told one by one.
func (d *denials) Denials() <-chan Denial { return d.told }

// Denied returns how many opens of the file were refused since it was last forgotten.
func (d *denials) Denied(file guard.FileID) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts[file]
}

// AllDenied returns how many opens were refused.
func (d *denials) AllDenied() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.total
}

// Forget sets the count of the file back.
func (d *denials) Forget(file guard.FileID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.counts, file)
}

// Untold returns the sums of what was not told one by one since the last call.
func (d *denials) Untold() []Denial {
	sums := d.takeUntold()
	for i := range sums { // without the lock, which the gate waits for
		sums[i].Program = program(sums[i].PID)
	}
	return sums
}

func (d *denials) takeUntold() (sums []Denial) {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.users) // numbers of processes are used again
	for key, s := range d.series {
		if s.untold > 0 {
			sums = append(sums, Denial{File: key.file, UID: key.uid, PID: s.pid, Times: s.untold})
			s.untold = 0
		} else if s.ration.Whole(time.Now()) {
			delete(d.series, key)
		}
	}
	return sums
}

// note takes down a denial that was answered already. What is read for it is what the
// owner is told.
func (d *denials) note(q question) {
	file, err := idOf(q.fd)
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.total++
	d.counts[file]++
	key := seriesKey{file: file, uid: d.userOf(q.pid)}
	if d.series[key] == nil && len(d.series) >= seriesKept {
		key.uid = Nobody
	}
	s := d.series[key]
	if s == nil {
		s = &series{ration: ration.Ration{Burst: tellBurst, Every: tellPause}}
		d.series[key] = s
	}
	if s.ration.Take(time.Now()) {
		select {
		case d.told <- Denial{File: file, UID: key.uid, PID: q.pid, Program: program(q.pid), Times: 1}:
			return
		default: // the gate never waits for a log
		}
	}
	s.untold++
	s.pid = q.pid
}

// userOf returns whom the process belongs to. The caller holds the lock.
func (d *denials) userOf(pid int) int {
	if uid, known := d.users[pid]; known {
		return uid
	}
	var st unix.Stat_t
	if unix.Stat("/proc/"+strconv.Itoa(pid), &st) != nil {
		return Nobody
	}
	if len(d.users) >= usersKept {
		clear(d.users)
	}
	d.users[pid] = int(st.Uid)
	return int(st.Uid)
}

// program returns the name of a process.
func program(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return "?"
	}
	return string(bytes.TrimSuffix(b, []byte("\n")))
}
