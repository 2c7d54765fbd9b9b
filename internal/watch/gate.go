package watch

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
	"dmloop/guard"
)

// ErrNoGate says that the kernel has no fanotify permission events
// (CONFIG_FANOTIFY_ACCESS_PERMISSIONS).
var ErrNoGate = errors.New("this kernel has no fanotify permission events (CONFIG_FANOTIFY_ACCESS_PERMISSIONS)")

// ErrNotRegular says that a file cannot be marked.
var ErrNotRegular = errors.New("only opens of regular files are denied")

// IDOf returns the inode of an open file, as permission events show it: without generation
// and birth.
func IDOf(f *os.File) (guard.FileID, error) { return idOf(int(f.Fd())) }

func idOf(fd int) (guard.FileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return guard.FileID{}, os.NewSyscallError("fstat", err)
	}
	dev := dmtable.DeviceOf(st.Dev)
	return guard.FileID{Major: dev.Major, Minor: dev.Minor, Inode: st.Ino}, nil
}

// Gate refuses opens of marked files to everybody but this process and those it
// was told to allow (fanotify FAN_OPEN_PERM). When this process ends, the kernel
// lets all opens pass again.
//
// Each file has a fanotify group of its own, and so a queue of its own, as far as lanes
// go. They are read in turn, a few events at a time: whoever opens one image in a loop,
// from however many tasks, does not hold up those that open another.
type Gate struct {
	*denials
	wake  int // an eventfd
	done  chan struct{}
	once  sync.Once
	buf   []byte
	asked []question // those of the last turn

	marking sync.Mutex // is held during calls of the kernel, which no answer waits for
	marked  map[guard.FileID]*lane

	mu      sync.Mutex
	closing bool
	lanes   []*lane     // changed with both locks held
	allowed map[int]int // pid -> times allowed
}

// lane is a fanotify group.
type lane struct {
	fd    int
	marks int
}

// The kernel lets a user have 128 groups (fs.fanotify.max_user_groups), and other
// programs of root want some. In each turn a lane has so many events answered.
const (
	maxLanes = 32
	perTurn  = 16
)

// NewGate opens the gate's first group. It fails with ErrNoGate where the kernel cannot
// ask, and with the errno where it could not be told.
func NewGate() (*Gate, error) {
	fd, err := newGroup()
	if err != nil {
		return nil, err
	}
	if err := answered(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	g := &Gate{
		denials: newDenials(), wake: wake, done: make(chan struct{}), buf: make([]byte, perTurn*eventSize),
		lanes: []*lane{{fd: fd}}, marked: map[guard.FileID]*lane{}, allowed: map[int]int{},
	}
	go g.run()
	return g, nil
}

// KernelDenies reports whether the kernel has permission events. It takes CAP_SYS_ADMIN.
func KernelDenies() (bool, error) {
	fd, err := newGroup()
	if err == nil {
		defer unix.Close(fd)
		err = answered(fd)
	}
	if errors.Is(err, ErrNoGate) {
		return false, nil
	}
	return err == nil, err
}

// answered finds out whether the kernel has permission events, and is ErrNoGate where it has
// not. It asks for none: some kernels are tainted as soon as a mark does (Debian's 7.3).
func answered(group int) error {
	// An answer that nobody has asked for. Without permission events no answer is taken at
	// all (fanotify_write in fs/notify/fanotify/fanotify_user.c).
	_, err := unix.Write(group, response(0, unix.FAN_ALLOW))
	switch {
	case errors.Is(err, unix.EINVAL):
		return ErrNoGate
	case errors.Is(err, unix.ENOENT):
		return nil
	case err == nil:
		return errors.New("fanotify: the kernel takes an answer to no question")
	}
	return fmt.Errorf("fanotify: an answer: %w", err)
}

// newGroup opens a fanotify group.
//
// The descriptors that come with events are opened without waiting (O_NONBLOCK):
// otherwise the kernel would make the gate wait for whoever holds a lease on the
// file, and that may be the very command that the gate protects.
func newGroup() (int, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_UNLIMITED_QUEUE|unix.FAN_UNLIMITED_MARKS,
		unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE|unix.O_NONBLOCK)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		return -1, ErrNoGate
	}
	if err != nil {
		return -1, fmt.Errorf("fanotify_init: %w", err)
	}
	return fd, nil
}

// Close takes all marks away and ends the gate.
func (g *Gate) Close() error {
	g.once.Do(func() {
		g.marking.Lock()
		defer g.marking.Unlock()
		clear(g.marked)
		g.mu.Lock()
		g.closing = true
		g.mu.Unlock()
		g.call()
		<-g.done
		close(g.told)
	})
	return nil
}

func (g *Gate) isClosing() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closing
}

// call has the gate's goroutine look at what changed.
func (g *Gate) call() { unix.Write(g.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// Mark refuses opens of the file from now on. The file is not opened for it. It has to
// be a regular one: a mark on a device or a folder would lock everybody out of it.
func (g *Gate) Mark(f *os.File) error {
	if err := regular(f); err != nil {
		return err
	}
	id, err := IDOf(f)
	if err != nil {
		return err
	}
	g.marking.Lock()
	defer g.marking.Unlock()
	if g.isClosing() {
		return os.ErrClosed
	}
	l := g.marked[id]
	if l == nil {
		l = g.freeLane()
	}
	if err := mark(l.fd, unix.FAN_MARK_ADD, f); err != nil {
		return err
	}
	if g.marked[id] == nil {
		g.marked[id] = l
		l.marks++
	}
	return nil
}

// Unmark lets opens of the file pass again.
func (g *Gate) Unmark(f *os.File) error {
	id, err := IDOf(f)
	if err != nil {
		return err
	}
	g.marking.Lock()
	defer g.marking.Unlock()
	l := g.marked[id]
	if l == nil {
		return nil
	}
	if err := mark(l.fd, unix.FAN_MARK_REMOVE, f); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	delete(g.marked, id)
	l.marks--
	return nil
}

func mark(group int, how uint, f *os.File) error {
	if err := unix.FanotifyMark(group, how, unix.FAN_OPEN_PERM, int(f.Fd()), ""); err != nil {
		return fmt.Errorf("%s: fanotify_mark: %w", f.Name(), err)
	}
	return nil
}

// freeLane returns a lane without marks, or the one with the fewest when there can be no
// more of them. The caller holds the lock of marks.
func (g *Gate) freeLane() *lane {
	fewest := slices.MinFunc(g.lanes, func(a, b *lane) int { return cmp.Compare(a.marks, b.marks) })
	if fewest.marks == 0 || len(g.lanes) == maxLanes {
		return fewest
	}
	fd, err := newGroup()
	if err != nil {
		return fewest // root has used up its groups, say
	}
	l := &lane{fd: fd}
	g.mu.Lock()
	g.lanes = append(g.lanes, l)
	g.mu.Unlock()
	g.call()
	return l
}

// regular fails for a file that is not a regular file.
func regular(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: %w", f.Name(), ErrNotRegular)
	}
	return nil
}

// Allow lets opens by the process pid pass until revoke is called. A process that cannot be
// seen from here, in another PID namespace, has the number 0 with the kernel, and so has
// everybody else there: that lets nobody pass.
func (g *Gate) Allow(pid int) (revoke func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.allowed[pid]++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.allowed[pid]--; g.allowed[pid] == 0 {
			delete(g.allowed, pid)
		}
	}
}

func (g *Gate) isAllowed(pid int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return pid == os.Getpid() || pid > 0 && g.allowed[pid] > 0
}

// eventSize is the length of struct fanotify_event_metadata (linux/fanotify.h):
//
//	__u32 event_len; __u8 vers; __u8 reserved; __u16 metadata_len;
//	__aligned_u64 mask; __s32 fd; __s32 pid;
const eventSize = 24

// question is one open that waits for an answer.
type question struct {
	fd, pid int
	denied  bool
}

// run answers until the gate is closed.
func (g *Gate) run() {
	defer close(g.done)
	for {
		g.mu.Lock()
		closing := g.closing
		fds := []unix.PollFd{{Fd: int32(g.wake), Events: unix.POLLIN}}
		for _, l := range g.lanes {
			fds = append(fds, unix.PollFd{Fd: int32(l.fd), Events: unix.POLLIN})
		}
		g.mu.Unlock()
		if closing {
			for _, fd := range fds {
				unix.Close(int(fd.Fd))
			}
			return
		}
		for changed := false; !changed; {
			if _, err := unix.Poll(fds, -1); err != nil {
				continue // EINTR; with valid arguments there is nothing else but ENOMEM
			}
			changed = fds[0].Revents != 0
			g.turn(fds[1:])
		}
		var number [8]byte
		unix.Read(g.wake, number[:])
	}
}

// turn answers what waits, some of each lane, before it does anything else: others wait
// for it. It opens nothing that could be marked: that open would wait for this very
// goroutine.
func (g *Gate) turn(lanes []unix.PollFd) {
	g.asked = g.asked[:0]
	for _, l := range lanes {
		if l.Revents != 0 {
			g.read(int(l.Fd))
		}
	}
	for _, q := range g.asked {
		if q.denied {
			g.note(q)
		}
		unix.Close(q.fd)
	}
}

// read answers some of a lane's events.
func (g *Gate) read(group int) {
	n, err := unix.Read(group, g.buf)
	if err != nil {
		return // EAGAIN is what comes when the kernel could not open the file for us without waiting: it has refused the open itself then
	}
	for buf := g.buf[:n]; len(buf) >= eventSize; {
		length := int(binary.NativeEndian.Uint32(buf[0:]))
		if length < eventSize || length > len(buf) || buf[4] != unix.FANOTIFY_METADATA_VERSION {
			return
		}
		mask := binary.NativeEndian.Uint64(buf[8:])
		q := question{fd: int(int32(binary.NativeEndian.Uint32(buf[16:]))), pid: int(int32(binary.NativeEndian.Uint32(buf[20:])))}
		if q.fd >= 0 {
			if mask&unix.FAN_OPEN_PERM != 0 {
				g.answer(group, &q)
			}
			g.asked = append(g.asked, q)
		}
		buf = buf[length:]
	}
}

func (g *Gate) answer(group int, q *question) {
	verdict := uint32(unix.FAN_DENY)
	if g.isAllowed(q.pid) {
		verdict = unix.FAN_ALLOW
	}
	q.denied = verdict == unix.FAN_DENY
	unix.Write(group, response(q.fd, verdict))
}

// response is a struct fanotify_response { __s32 fd; __u32 response; }.
func response(fd int, verdict uint32) []byte {
	r := binary.NativeEndian.AppendUint32(make([]byte, 0, 8), uint32(fd))
	return binary.NativeEndian.AppendUint32(r, verdict)
}
