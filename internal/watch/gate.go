package watch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"dmloop/dmtable"
)

// ErrNoGate says that the kernel has no fanotify permission events
// (CONFIG_FANOTIFY_ACCESS_PERMISSIONS).
var ErrNoGate = errors.New("this kernel has no fanotify permission events (CONFIG_FANOTIFY_ACCESS_PERMISSIONS)")

// FileID is an inode as permission events show it.
type FileID struct {
	Device dmtable.Device
	Inode  uint64
}

// IDOf returns the identity of an open file.
func IDOf(f *os.File) (FileID, error) { return idOf(int(f.Fd())) }

func idOf(fd int) (FileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return FileID{}, os.NewSyscallError("fstat", err)
	}
	dev := dmtable.Device{Major: unix.Major(st.Dev), Minor: unix.Minor(st.Dev)}
	return FileID{Device: dev, Inode: st.Ino}, nil
}

// Denial is one refused open.
type Denial struct {
	File    FileID
	PID     int
	Program string // the kernel's name of the process, 15 characters at most
}

// Gate refuses opens of marked files to everybody but this process and those it
// was told to allow (fanotify FAN_OPEN_PERM). When this process ends, the kernel
// lets all opens pass again.
type Gate struct {
	poller *poller
	buf    []byte
	denied chan Denial

	mu      sync.Mutex
	allowed map[int]int // pid -> times allowed
	missed  uint64
}

// NewGate opens the gate's group. It fails with ErrNoGate where the kernel cannot
// ask, and with the errno where it could not be told.
//
// The descriptors that come with events are opened without waiting (O_NONBLOCK):
// otherwise the kernel would make the gate wait for whoever holds a lease on the
// file, and that may be the very command that the gate protects.
func NewGate() (*Gate, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_UNLIMITED_QUEUE|unix.FAN_UNLIMITED_MARKS,
		unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE|unix.O_NONBLOCK)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		return nil, ErrNoGate
	}
	if err != nil {
		return nil, fmt.Errorf("fanotify_init: %w", err)
	}
	if err := probe(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	g := &Gate{buf: make([]byte, 16<<10), denied: make(chan Denial, 256), allowed: map[int]int{}}
	if g.poller, err = newPoller(fd, unix.POLLIN, func() bool { return g.read(fd) }); err != nil {
		return nil, err
	}
	return g, nil
}

// probe marks a file of ours and takes the mark away again: kernels without
// permission events refuse the mask with EINVAL.
func probe(fd int) error {
	mfd, err := unix.MemfdCreate("dmloop-probe", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	defer unix.Close(mfd)
	err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN_PERM, mfd, "")
	if errors.Is(err, unix.EINVAL) {
		return ErrNoGate
	}
	if err != nil {
		return fmt.Errorf("fanotify_mark: %w", err)
	}
	return unix.FanotifyMark(fd, unix.FAN_MARK_REMOVE, unix.FAN_OPEN_PERM, mfd, "")
}

// Close takes all marks away and ends the gate.
func (g *Gate) Close() error {
	err := g.poller.close()
	close(g.denied)
	return err
}

// Denials gives what was refused. When nobody reads, denials are dropped and
// counted: the gate never waits for a log.
func (g *Gate) Denials() <-chan Denial { return g.denied }

// Missed returns how many denials were dropped.
func (g *Gate) Missed() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.missed
}

// Mark refuses opens of the file from now on. The file is not opened for it.
func (g *Gate) Mark(f *os.File) error { return g.mark(unix.FAN_MARK_ADD, f) }

// Unmark lets opens of the file pass again.
func (g *Gate) Unmark(f *os.File) error {
	err := g.mark(unix.FAN_MARK_REMOVE, f)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (g *Gate) mark(how uint, f *os.File) error {
	if err := unix.FanotifyMark(g.poller.fd, how, unix.FAN_OPEN_PERM, int(f.Fd()), ""); err != nil {
		return fmt.Errorf("%s: fanotify_mark: %w", f.Name(), err)
	}
	return nil
}

// Allow lets opens by the process pid pass until revoke is called.
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
	return pid == os.Getpid() || g.allowed[pid] > 0
}

// eventSize is the length of struct fanotify_event_metadata (linux/fanotify.h):
//
//	__u32 event_len; __u8 vers; __u8 reserved; __u16 metadata_len;
//	__aligned_u64 mask; __s32 fd; __s32 pid;
const eventSize = 24

// read answers the events that are there. It opens nothing: an open of a marked
// file would wait for this very goroutine.
func (g *Gate) read(group int) bool {
	n, err := unix.Read(group, g.buf)
	if err != nil {
		// EAGAIN is also what comes when the kernel could not open the file for us
		// without waiting; it refused the open itself then.
		return !errors.Is(err, unix.EBADF)
	}
	buf := g.buf[:n]
	for len(buf) >= eventSize {
		length := int(binary.NativeEndian.Uint32(buf[0:]))
		if length < eventSize || length > len(buf) || buf[4] != unix.FANOTIFY_METADATA_VERSION {
			return true
		}
		mask := binary.NativeEndian.Uint64(buf[8:])
		fd := int(int32(binary.NativeEndian.Uint32(buf[16:])))
		pid := int(int32(binary.NativeEndian.Uint32(buf[20:])))
		if fd >= 0 {
			g.answer(group, fd, pid, mask)
			unix.Close(fd)
		}
		buf = buf[length:]
	}
	return true
}

func (g *Gate) answer(group, fd, pid int, mask uint64) {
	if mask&unix.FAN_OPEN_PERM == 0 {
		return
	}
	verdict := uint32(unix.FAN_DENY)
	if g.isAllowed(pid) {
		verdict = unix.FAN_ALLOW
	}
	var denial Denial
	if verdict == unix.FAN_DENY { // while the process still waits, so that its name can be read
		denial = Denial{PID: pid, Program: program(pid)}
		denial.File, _ = idOf(fd)
	}
	// struct fanotify_response { __s32 fd; __u32 response; }
	var response [8]byte
	binary.NativeEndian.PutUint32(response[0:], uint32(fd))
	binary.NativeEndian.PutUint32(response[4:], verdict)
	unix.Write(group, response[:])
	if verdict == unix.FAN_ALLOW {
		return
	}
	select {
	case g.denied <- denial:
	default:
		g.mu.Lock()
		g.missed++
		g.mu.Unlock()
	}
}

// program returns the name of a process.
func program(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return "?"
	}
	return string(bytes.TrimSuffix(b, []byte("\n")))
}
