package watch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrOpensUntold says that the kernel does not report opens of an image: the timer finds
// what follows from it.
var ErrOpensUntold = errors.New("the kernel does not report opens of the image")

const openEvents = unix.FAN_OPEN | unix.FAN_CLOSE_WRITE | unix.FAN_CLOSE_NOWRITE

// opens says when images are opened and closed, by fanotify notifications. Events name
// files by their handles (FAN_REPORT_FID, Linux 5.1): an event with a descriptor would make
// the guard one more opener of the image, which whoever takes a lease on it would see.
type opens struct {
	hints  FileHints
	poller *poller
	buf    []byte

	mu     sync.Mutex
	images map[string][]string // handle -> keys
}

func newOpens(hints FileHints) (*opens, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_REPORT_FID|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fanotify_init: %w", err)
	}
	o := &opens{hints: hints, buf: make([]byte, 64<<10), images: map[string][]string{}}
	if o.poller, err = newPoller(fd, unix.POLLIN, func() bool { return o.read(fd) }); err != nil {
		return nil, err
	}
	return o, nil
}

func (o *opens) close() error { return o.poller.close() }

// add begins to tell about an image. Before Linux 6.8 a file of a btrfs subvolume cannot be
// marked (EXDEV).
func (o *opens) add(key string, image *os.File) error {
	handle, err := handleOf(image)
	if err == nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		err = unix.FanotifyMark(o.poller.fd, unix.FAN_MARK_ADD, openEvents, int(image.Fd()), "")
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrOpensUntold, err)
	}
	o.images[handle] = append(o.images[handle], key)
	return nil
}

func (o *opens) forget(key string, image *os.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for handle, keys := range o.images {
		if !slices.Contains(keys, key) {
			continue
		}
		if keys = slices.DeleteFunc(keys, func(k string) bool { return k == key }); len(keys) > 0 {
			o.images[handle] = keys
			continue
		}
		delete(o.images, handle)
		_ = unix.FanotifyMark(o.poller.fd, unix.FAN_MARK_REMOVE, openEvents, int(image.Fd()), "") // which may be gone already
	}
}

// handleOf is the file's handle as events have it: struct fanotify_event_info_fid without
// its header, that is the file system's id and a struct file_handle.
func handleOf(f *os.File) (string, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return "", os.NewSyscallError("fstatfs", err)
	}
	handle, _, err := unix.NameToHandleAt(int(f.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return "", os.NewSyscallError("name_to_handle_at", err)
	}
	return handleText(fs.Fsid.Val, handle.Type(), handle.Bytes()), nil
}

func handleText(fsid [2]int32, kind int32, handle []byte) string {
	return fmt.Sprintf("%x %x %d %x", fsid[0], fsid[1], kind, handle)
}

// read takes the events that are there, and tells each image once. Without them the timer
// is all that is left, so the end of the stream is told as a loss.
func (o *opens) read(fd int) bool {
	n, err := unix.Read(fd, o.buf)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return true
	}
	if err != nil {
		o.hints.Lost("", "fanotify: "+err.Error())
		return false
	}
	seen, overflow := parseOpens(o.buf[:n])
	if overflow {
		o.hints.Lost("", "the fanotify queue overflowed")
	}
	for handle, mask := range seen {
		o.mu.Lock()
		keys := slices.Clone(o.images[handle])
		o.mu.Unlock()
		for _, k := range keys {
			o.hints.Touched(k, openText(mask))
		}
	}
	return true
}

// parseOpens reads events as fanotify(7) has them:
//
//	struct fanotify_event_metadata { __u32 event_len; __u8 vers; __u8 reserved;
//	  __u16 metadata_len; __u64 mask; __s32 fd; __s32 pid; }
//	struct fanotify_event_info_header { __u8 info_type; __u8 pad; __u16 len; }
//	__kernel_fsid_t fsid; struct file_handle { __u32 handle_bytes; __s32 handle_type; ... }
func parseOpens(buf []byte) (seen map[string]uint64, overflow bool) {
	seen = map[string]uint64{}
	for len(buf) >= eventSize {
		length, head := int(binary.NativeEndian.Uint32(buf)), int(binary.NativeEndian.Uint16(buf[6:]))
		if length < eventSize || length > len(buf) || head > length || buf[4] != unix.FANOTIFY_METADATA_VERSION {
			return seen, true // what is not understood may have been anything
		}
		mask := binary.NativeEndian.Uint64(buf[8:])
		overflow = overflow || mask&unix.FAN_Q_OVERFLOW != 0
		for info := buf[head:length]; len(info) >= 4; {
			size := int(binary.NativeEndian.Uint16(info[2:]))
			if size < 4 || size > len(info) {
				return seen, true
			}
			if info[0] == unix.FAN_EVENT_INFO_TYPE_FID && size >= 20 {
				bytes := int(binary.NativeEndian.Uint32(info[12:]))
				if bytes < 0 || bytes > size-20 {
					return seen, true
				}
				fsid := [2]int32{int32(binary.NativeEndian.Uint32(info[4:])), int32(binary.NativeEndian.Uint32(info[8:]))}
				seen[handleText(fsid, int32(binary.NativeEndian.Uint32(info[16:])), info[20:20+bytes])] |= mask
			}
			info = info[size:]
		}
		buf = buf[length:]
	}
	return seen, overflow
}

// openText names the events, for logs.
func openText(mask uint64) string {
	text := ""
	for _, e := range []struct {
		bit  uint64
		name string
	}{{unix.FAN_OPEN, "open"}, {unix.FAN_CLOSE_WRITE, "close-write"}, {unix.FAN_CLOSE_NOWRITE, "close"}} {
		if mask&e.bit != 0 {
			if text != "" {
				text += " "
			}
			text += e.name
		}
	}
	return text
}
